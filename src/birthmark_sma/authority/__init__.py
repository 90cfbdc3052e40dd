"""The authority, one package a feature. `authority.open_authority` wires the parts together.

`validation` judges camera tokens, `provisioning` registers devices, `devices` searches and revokes
them, `key_tables` has the shared secrets, `ca` has certificates and CRLs, `kek` has the
key-encryption keys, `access` has access keys and sessions, `rate_limits` limits callers,
`background` has most background tasks, `operations` has backup, statistics and `sma doctor`, and
`sandbox` has the differences of a sandbox. `server_metrics` counts for `/metrics`. Called by `web`
and `cli`. No module here may import `web` or `cli`.
"""
