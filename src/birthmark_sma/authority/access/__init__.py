"""Access keys, dashboard sessions, and the caller of a request.

Called by the authentication middleware, the dashboard and `sma keys`. The database must never hold
a secret of an access key or a session token, only their SHA-256 digests.
"""
