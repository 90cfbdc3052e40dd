"""The database: SQLAlchemy Core, synchronous, SQLite and PostgreSQL from the same tables.

`engine.Database` is the only way to a connection; the other modules are functions on one. Nothing
here decides anything: rules live in `protocol`, verbs in `authority`.
"""
