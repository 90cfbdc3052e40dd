"""What `sma doctor` looks at: `examination` in order, and one module a kind of thing.

Nothing here changes anything.
"""
