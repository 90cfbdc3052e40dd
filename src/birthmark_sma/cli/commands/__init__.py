"""The commands of `sma`, a module for each noun. `cli/main.py` puts them together."""
