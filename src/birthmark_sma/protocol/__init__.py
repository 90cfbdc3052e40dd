"""Protocol v1, pure: no clock, no randomness, no I/O. Time and chance are passed in.

The way in: `key_derivation` gives a key, `camera_token` seals and opens under it, `key_table` says
who holds which tables, and `verdict` decides PASS or FAIL.
"""
