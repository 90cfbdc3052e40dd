"""Below ASGI: the HTTP protocol and its bounds, client addresses and certificates, TLS."""
