"""The commands of `sma`, one module for each noun. `cli/main.py` registers them."""
