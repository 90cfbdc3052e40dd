"""`sma provision-batch`: read records, provision them in worker processes, write results.

An interrupted run can be resumed.
"""
