"""Define the sizes of key tables, and assign three tables to each device.

Many devices share a table on purpose: a table id on the wire then identifies a group of devices and
not a single one. This group is the anonymity set of a token.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from birthmark_sma.errors import ProtocolError

TABLES_PER_DEVICE = 3
MAX_WIRE_INTEGER = 2**31 - 1
"""The largest table id or key index on the wire. A larger one is malformed, not unknown."""


@dataclass(frozen=True, slots=True)
class TableSizes:
    """The number of tables of an authority, and the number of keys in each table.

    Both are fixed when the authority is created.
    """

    tables: int
    keys_per_table: int

    def __post_init__(self) -> None:
        if not TABLES_PER_DEVICE <= self.tables <= MAX_WIRE_INTEGER:
            raise ProtocolError(
                f"An authority has at least {TABLES_PER_DEVICE} key tables, not {self.tables}."
            )
        if not 1 <= self.keys_per_table <= MAX_WIRE_INTEGER:
            raise ProtocolError(f"A key table has at least 1 key, not {self.keys_per_table}.")

    def has_table(self, table_id: int) -> bool:
        """Return True if the authority has a table with this id."""
        return 0 <= table_id < self.tables

    def has_key_index(self, key_index: int) -> bool:
        """Return True if every table has a key with this index."""
        return 0 <= key_index < self.keys_per_table


STANDARD_SIZES = TableSizes(tables=2_500, keys_per_table=1_000)
PROTOTYPE_SIZES = TableSizes(tables=10, keys_per_table=100)
PUBLISHED_SIZES = TableSizes(tables=250, keys_per_table=1_000)
"""The limits of the Birthmark project's published software, whatever the sizes of an authority.

Its server refuses table ids from 250 on, and its cameras draw one of 1,000 key indices.
"""

Sample = Callable[[Sequence[int], int], list[int]]


def assign_tables(sizes: TableSizes, sample: Sample) -> tuple[int, ...]:
    """Return the 3 distinct table ids of a new device, ascending.

    `sample(population, k)` draws k elements without replacement. Pass the one of
    `secrets.SystemRandom()`: an attacker who can predict an assignment knows which group of devices
    a device belongs to.
    """
    return tuple(sorted(sample(range(sizes.tables), TABLES_PER_DEVICE)))
