"""JSON objects of what the authority has: the same for `sma ... --json` and the administration API.

A module for each feature. `pages` alone reads the database. Nothing here shows a secret.
"""
