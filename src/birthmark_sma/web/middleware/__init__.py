"""The steps that requests pass: authentication, rate limits, bodies, headers, timeouts, metrics.

Some modules are ASGI middleware. The steps that a single camera token needs are plain functions on
the scope, which also run on the fast path (`web.transport.fast_path`), without ASGI (ADR 0007).
"""
