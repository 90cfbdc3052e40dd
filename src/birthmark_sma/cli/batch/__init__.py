"""`sma provision-batch`: read records, provision them in workers, write results.

A run that was cut off can be resumed.
"""
