"""Rate limits: `limiter` decides, with sliding windows in memory and, if configured, in Redis.

Called by the rate-limit middleware and by validation. An unavailable Redis must never stop the
service.
"""
