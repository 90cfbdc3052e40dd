"""The steps that requests pass: authentication, rate limits, bodies, headers, timeouts, metrics.

`web.pipeline` calls them in order. A step reads and changes the RequestContext and calls no other.
"""
