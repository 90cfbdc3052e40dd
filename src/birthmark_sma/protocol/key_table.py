"""Key tables: how many there are, and which three of them a device holds.

Tables are shared by devices on purpose: a table id on the wire narrows a token down to a crowd.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from birthmark_sma.errors import ProtocolError

TABLES_PER_DEVICE = 3
MAX_WIRE_INTEGER = 2**31 - 1
"""The largest table id or key index on the wire; a larger one is malformed, not unknown."""


@dataclass(frozen=True, slots=True)
class TableSizes:
    """How many tables an authority has and how many keys each holds: fixed at initialisation."""

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
        """Say whether a table of this id exists."""
        return 0 <= table_id < self.tables

    def has_key_index(self, key_index: int) -> bool:
        """Say whether a key of this index exists in every table."""
        return 0 <= key_index < self.keys_per_table


STANDARD_SIZES = TableSizes(tables=2_500, keys_per_table=1_000)
PROTOTYPE_SIZES = TableSizes(tables=10, keys_per_table=100)
PUBLISHED_SIZES = TableSizes(tables=250, keys_per_table=1_000)
"""The Birthmark project's published server refuses table ids from 250 on, and its cameras draw one
of 1,000 key indices, whatever the sizes of an authority."""

Sample = Callable[[Sequence[int], int], list[int]]


def assign_tables(sizes: TableSizes, sample: Sample) -> tuple[int, ...]:
    """Return the 3 distinct table ids of a new device, ascending.

    `sample(population, k)` draws without replacement; pass that of `secrets.SystemRandom()`, as
    an assignment that can be predicted tells an attacker which crowd a device hides in.
    """
    return tuple(sorted(sample(range(sizes.tables), TABLES_PER_DEVICE)))
