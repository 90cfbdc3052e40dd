"""Give a device the keys of its tables, and refuse to register keys that a rotation replaced.

Called by `provisioning.issuance`, which makes the response, and by `provisioning.registration`,
which stores the epochs of the same keys with the device. Both must use this module, so that the
register never says that a device has a key which it was not given.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from sqlalchemy import Connection

from birthmark_sma.authority.key_tables import store as key_table_store
from birthmark_sma.authority.key_tables.cache import TableKeys


@dataclass(frozen=True, slots=True)
class DeviceKeys:
    """The master keys of a device's tables, with their epochs.

    `epochs` is parallel to the table ids. `table_keys` maps table ids to 64 hex digits, as on the
    wire.
    """

    epochs: tuple[int, ...]
    table_keys: dict[str, str] = field(repr=False)


def current_keys(keys: TableKeys, table_ids: Sequence[int]) -> DeviceKeys:
    """Return the newest keys of these tables."""
    current = [keys.current[table_id] for table_id in table_ids]
    return DeviceKeys(
        epochs=tuple(key.epoch for key in current),
        table_keys={
            str(table_id): key.master_key.hex()
            for table_id, key in zip(table_ids, current, strict=True)
        },
    )


def find_replaced(
    transaction: Connection, given: Mapping[str, tuple[Sequence[int], Sequence[int]]]
) -> set[str]:
    """Return the names of those in `given` that have a key which a rotation has replaced.

    `given` maps a name to table ids and the epochs of the keys. Call
    `devices.store.hold_registrations` before, in the same transaction: then no rotation can replace
    a key between this check and the commit.
    """
    if not given:
        return set()
    asked = sorted({table_id for table_ids, _ in given.values() for table_id in table_ids})
    current = key_table_store.find_epochs(transaction, asked)
    return {
        name
        for name, (table_ids, epochs) in given.items()
        if [current.get(table_id) for table_id in table_ids] != list(epochs)
    }
