"""The layers below ASGI: HTTP protocol and its limits, client identity, proxies, TLS, shutdown."""
