"""The register of devices: look up, search, suspend, revoke, and flag abuse.

Called by validation, provisioning, background tasks, the dashboard and `sma devices`. Its functions
get an open connection or transaction, so they must never commit, except in `revocation`.
"""
