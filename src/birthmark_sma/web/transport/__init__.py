"""The layers below ASGI: HTTP protocol and its limits, fast path, client identity, proxies, TLS."""
