"""Access to the database: synchronous SQLAlchemy Core, one schema for SQLite and PostgreSQL.

`engine.Database` is the only way to get a connection; the functions of the other modules take one.
The stores in `authority` call this package. It contains no business rules: these are in `protocol`
and `authority`. It never runs in an event loop.
"""
