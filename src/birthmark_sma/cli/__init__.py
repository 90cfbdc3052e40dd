"""The command line `sma`: `commands` has a module for each noun, `batch` and `simulate` the large
ones.

`main.py` registers the commands and turns errors into exit codes. Command modules import heavy
libraries inside the functions, so that `sma --help` stays fast.
"""
