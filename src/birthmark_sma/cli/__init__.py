"""The command line `sma`.

`main.py` registers the commands and turns errors into exit codes. Command modules import heavy
libraries inside the functions, so that `sma --help` stays fast.
"""
