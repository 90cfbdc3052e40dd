"""The command line: `commands` has one module a noun, `batch` and `simulate` the large commands.

`main` puts them together. Heavy imports stand inside the commands, so that `sma --help` answers at
once.
"""
