"""The register of devices: look up, search, suspend, revoke, and flag abuse.

Called by validation, provisioning, background tasks, statistics, the dashboard and `sma devices`.
Only `revocation` opens transactions of its own. All other functions get an open connection or
transaction, and must never commit.
"""
