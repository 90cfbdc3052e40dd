"""Validate camera tokens in batches. `service` is the entry point.

Called by web/api/validate.py and `sma validate`; statistics, retention, `sma doctor` and the
dashboard read and prune what it records. One transaction judges and records a batch.
This package must never return a verdict before the transaction of its audit row has committed.
"""
