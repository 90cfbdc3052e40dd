"""The register of devices: look up, search, revoke, and flag abuse.

Called by validation, provisioning, the dashboard and `sma devices`.
"""
