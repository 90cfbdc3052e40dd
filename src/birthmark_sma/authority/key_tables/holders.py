"""Report which devices hold the keys of key tables: who is exposed by a leak, who has earlier keys.

Called by `sma tables` and the doctor. Revoked and retired devices are left out, because none of
their tokens passes. Each function reads the whole register of devices (a second for a million), so
no request may call it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple, Protocol

from sqlalchemy import Connection

from birthmark_sma.authority.key_tables import store as key_table_store
from birthmark_sma.authority.key_tables import store_postgresql, store_sqlite
from birthmark_sma.protocol.key_table import TABLES_PER_DEVICE
from birthmark_sma.storage.portable_sql import choose


class HoldersSql(Protocol):
    """SQL of this module that differs by database, in `store_postgresql` and `store_sqlite`."""

    def count_sharing(
        self, connection: Connection, table_ids: Sequence[int], without: str
    ) -> dict[int, int]:
        """Return the number of devices by the number of these tables that they have, at least 1.

        The device with the serial `without` is left out.
        """

    def count_by_table(self, connection: Connection, table_ids: Sequence[int]) -> dict[int, int]:
        """Return the number of devices by table. Tables without devices are missing."""

    def count_stragglers(self, connection: Connection, table_ids: Sequence[int]) -> int:
        """Return the number of devices with an earlier key of one of these tables."""

    def list_stragglers(
        self, connection: Connection, table_ids: Sequence[int], after: str, limit: int
    ) -> Sequence[Any]:
        """Return serial, tables and epochs of up to `limit` such devices, by serial."""


@dataclass(frozen=True, slots=True)
class Exposure:
    """The devices that are exposed if the keys of `tables` leak.

    `devices_by_shared` maps a number of tables, 1 to 3, to the number of devices that have so many
    of these tables. `devices_by_table` has the number of devices of each table.
    """

    tables: tuple[int, ...]
    devices_by_shared: Mapping[int, int]
    devices_by_table: Mapping[int, int]

    @property
    def devices(self) -> int:
        """Return the number of devices that have at least one of the tables."""
        return sum(self.devices_by_shared.values())


class EarlierKeyOf(NamedTuple):
    """A key that a device has of a table, while the table has a newer one."""

    table_id: int
    epoch: int
    current_epoch: int
    accepted_until: datetime | None
    """The time until which tokens under this key are accepted; None if they are not."""


@dataclass(frozen=True, slots=True)
class Straggler:
    """A device that has earlier keys."""

    device_serial: str
    outdated: tuple[EarlierKeyOf, ...]


def find_exposure(
    connection: Connection, table_ids: Sequence[int], *, without: str = ""
) -> Exposure:
    """Return who is exposed if the keys of these tables leak, whatever the epochs.

    `without` is the serial of a device that is not counted: the one that leaked them.
    """
    sql = _sql(connection)
    shared = sql.count_sharing(connection, table_ids, without)
    by_table = sql.count_by_table(connection, table_ids)
    return Exposure(
        tuple(table_ids),
        {number: shared.get(number, 0) for number in range(1, TABLES_PER_DEVICE + 1)},
        {table_id: by_table.get(table_id, 0) for table_id in table_ids},
    )


def count_stragglers(connection: Connection, table_ids: Sequence[int]) -> int:
    """Return the number of devices that have an earlier key of one of these tables."""
    return _sql(connection).count_stragglers(connection, table_ids) if table_ids else 0


def list_stragglers(
    connection: Connection, table_ids: Sequence[int], *, limit: int, after: str = ""
) -> list[Straggler]:
    """Return up to `limit` devices that have an earlier key of one of these tables.

    They are sorted by serial, and begin after the serial `after`.
    """
    current = key_table_store.find_epochs(connection, table_ids)
    earlier = {each.table_id: each for each in key_table_store.list_earlier(connection)}

    def earlier_key(table_id: int, epoch: int) -> EarlierKeyOf:
        live = earlier.get(table_id)
        until = live.accepted_until if live is not None and live.epoch == epoch else None
        return EarlierKeyOf(table_id, epoch, current[table_id], until)

    return [
        Straggler(
            serial,
            tuple(
                earlier_key(table_id, epoch)
                for table_id, epoch in zip(tables, epochs or [0] * len(tables), strict=False)
                if epoch < current.get(table_id, 0)
            ),
        )
        for serial, tables, epochs in _sql(connection).list_stragglers(
            connection, table_ids, after, limit
        )
    ]


def _sql(connection: Connection) -> HoldersSql:
    return choose(connection, postgresql=store_postgresql, sqlite=store_sqlite)
