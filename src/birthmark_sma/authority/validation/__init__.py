"""Validate camera tokens: `service` gathers them, one transaction judges and records a batch.

Called by web/api/validate.py and `sma validate`. No verdict leaves before its commit.
"""
