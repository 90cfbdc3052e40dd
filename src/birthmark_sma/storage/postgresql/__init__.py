"""Talk to PostgreSQL without psycopg's cursors: `arrays` in binary format, and pipelines.

`storage.postgresql_driver` is built on these. Stores encode their rows with `arrays`.
"""
