"""The steps that requests pass: authentication, rate limits, bodies, headers, timeouts, metrics.

Some modules are ASGI middleware. The steps that a single camera token needs are plain functions on
the scope, which `web.transport.fast_path` calls without ASGI (ADR 0007).
"""
