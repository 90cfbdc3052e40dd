"""The command line, one module a noun.

Heavy imports stand inside the commands, so that `sma --help` answers at once.
"""
