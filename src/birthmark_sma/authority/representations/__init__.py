"""JSON objects of what the authority has: the same for `sma ... --json` and the administration API.

A module for each feature. Nothing here reads the database or shows a secret.
"""
