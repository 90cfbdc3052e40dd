"""Access keys of callers, sessions of the dashboard, and the caller that a request has.

Called by the authentication middleware, the dashboard and `sma keys`. Secrets are stored as hashes.
"""
