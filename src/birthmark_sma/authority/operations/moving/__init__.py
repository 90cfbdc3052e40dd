"""Move an authority from SQLite to PostgreSQL: copy, resume, prove, finish, undo.

`sma move` calls `move.py`. Every table of `storage.schema` is moved; no module names them one by
one.
"""
