"""Implement the wire protocol, version 1, as pure functions without clock, randomness or I/O.

Callers pass in the time and the random values, so tests need no server. The authority, clients and
cameras all use it. `key_derivation` derives a key. `camera_token` seals and opens a NUC hash under
that key. `key_table` defines the table sizes and assigns three tables to a device. `verdict`
decides PASS or FAIL, and `replay` whether a repeated token is a replay. `bundle` and
`bundle_signature` define what a camera sends to an aggregation server.
"""
