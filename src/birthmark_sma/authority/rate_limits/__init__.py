"""Rate limits: `limiter` decides, over sliding windows in memory or in a shared Redis.

Called by the rate-limit middleware and by validation. A Redis that is away never stops the service.
"""
