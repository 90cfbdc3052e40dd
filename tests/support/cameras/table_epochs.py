"""Rotate the key tables of an authority in tests, and give its cameras the new keys."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from sqlalchemy import update

from birthmark_sma.authority.authority import Authority
from birthmark_sma.authority.key_tables import epochs
from birthmark_sma.authority.key_tables import store as key_table_store
from birthmark_sma.authority.key_tables.device_keys import current_keys
from birthmark_sma.authority.key_tables.epochs import TableState
from birthmark_sma.storage.engine import Database
from birthmark_sma.storage.schema.devices import registered_devices
from birthmark_sma.storage.schema.key_tables import earlier_table_keys
from tests.support.cameras.camera import Camera
from tests.support.devices.actors import ACTOR

MONTH = timedelta(days=30)


def rotate(
    authority: Authority, table_ids: Sequence[int] | None = None, overlap: timedelta = MONTH
) -> list[TableState]:
    """Rotate tables of an authority, all of them by default."""
    chosen = range(authority.table_sizes.tables) if table_ids is None else table_ids
    return epochs.rotate(authority.database, authority.secrets.keks, chosen, overlap, actor=ACTOR)


def give_new_keys(authority: Authority, camera: Camera) -> Camera:
    """Return the camera with the newest keys of its tables, and register their epochs."""
    table_ids = sorted(camera.table_keys)
    with authority.database.write() as transaction:
        keys = current_keys(authority.table_cache.poll(transaction), table_ids)
        transaction.execute(
            update(registered_devices)
            .where(registered_devices.c.device_serial == camera.serial)
            .values(table_epochs=list(keys.epochs))
        )
    held = {int(table): bytes.fromhex(key) for table, key in keys.table_keys.items()}
    return replace(camera, table_keys=held)


def let_overlaps_end(database: Database, *table_ids: int) -> None:
    """Let the overlaps of all tables, or of these, have ended. The earlier keys are not deleted."""
    ending = update(earlier_table_keys)
    if table_ids:
        ending = ending.where(earlier_table_keys.c.table_id.in_(table_ids))
    with database.write() as transaction:
        transaction.execute(ending.values(accepted_until=datetime.now(UTC) - timedelta(seconds=1)))
        key_table_store.raise_generation(transaction)
