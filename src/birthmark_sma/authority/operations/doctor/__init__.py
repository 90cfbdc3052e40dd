"""The health checks of `sma doctor`: `runner` runs them in order, `findings` has their results.

The other modules contain the checks: database, audit log, expiry dates, secrets and disk. No check
changes anything.
"""
