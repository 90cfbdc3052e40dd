"""Access to the database: synchronous SQLAlchemy Core, one schema for SQLite and PostgreSQL.

`engine.Database` is the way to get a connection; the functions of the other modules take one, or
the `Database`. `authority`, some commands, and the timeouts and traces of `web` use this package.
It contains no business rules: these are in `protocol` and `authority`. It never runs in an event
loop.
"""
