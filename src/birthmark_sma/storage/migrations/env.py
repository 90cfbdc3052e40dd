"""Alembic's entry: run migrations on the connection that `storage.migration` hands over."""

from alembic import context

from birthmark_sma.storage.schema import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
context.run_migrations()
