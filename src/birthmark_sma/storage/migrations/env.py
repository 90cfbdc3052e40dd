"""Run migrations on the connection that `storage.migration` passes in. Alembic imports this file.

It opens no connection and commits nothing: both belong to `storage.migration`.
"""

from alembic import context

from birthmark_sma.storage.schema import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
context.run_migrations()
