"""The command line `sma`: a module for each noun in `commands`, and `batch` and `simulate`.

`main.py` registers the commands and turns errors into exit codes. Command modules import heavy
libraries inside the functions, so that `sma --help` stays fast.
"""
