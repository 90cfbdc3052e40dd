"""Validate camera tokens in batches. `service` is the entry point.

Called by web/api/validate.py and `sma validate`. One transaction judges and records a batch.
This package must never return a verdict before the transaction of its audit row has committed.
"""
