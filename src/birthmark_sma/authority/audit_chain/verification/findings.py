"""The rows that a verification reads, and its findings. PURE.

The modules of this folder use these types. A reader gives one state of the trail: it must not trust
any value that it reads, and must read a bounded number of rows at a time.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple, Protocol

from birthmark_sma.authority.audit_chain.batches import AuditBatch


class StoredNote(NamedTuple):
    """A checkpoint, and what the columns beside its note say about it."""

    number: int
    note: str
    made_at: datetime
    lists_all: bool
    pruned_before: datetime | None
    coarse_before: datetime | None


class StoredRow(NamedTuple):
    """An audit row. `values` are in the order of `batches.ROW_FIELDS`."""

    id: int
    kept: bytes | None
    """The commitment to its time and address, if they were dropped."""
    values: tuple[Any, ...]


class StoredAct(NamedTuple):
    """An act with the leaves of itself and of its subjects, and their names in this order.

    If there are subjects of an act that does not exist, it has no leaves.
    """

    id: int
    leaves: list[bytes]
    subjects: list[str]


class AuditReader(Protocol):
    """One state of the trail, in the order in which it is verified."""

    def malformed(self) -> Iterable[str]:
        """Return the rows, in words, with values that no program writes. Others leave them out."""

    def verifiers(self) -> Iterable[tuple[int, str]]:
        """Return the public keys of checkpoints by number."""

    def notes(self) -> Iterable[StoredNote]:
        """Return the checkpoints by number."""

    def chains(self) -> Iterable[AuditBatch]:
        """Return all batches by writer and sequence. Their leaves may be left out."""

    def days(self) -> Iterable[datetime]:
        """Return the days (midnights in UTC) that have rows or batches of validations."""

    def batches_of(self, day: datetime) -> Iterable[AuditBatch]:
        """Return the batches of validations of a day by first id."""

    def rows_of(self, day: datetime) -> Iterable[StoredRow]:
        """Return the audit rows of a day by id."""

    def batches_of_acts(self) -> Iterable[AuditBatch]:
        """Return the batches of acts by first id."""

    def acts(self) -> Iterable[StoredAct]:
        """Return the acts by id."""


class Finding(NamedTuple):
    """Something that is not as it was written."""

    fault: str
    """`deleted`, `changed`, `inserted`, `doubled` or `moved`."""
    what: str
    """Such as `row 17`, `batch 4 of chain abc`, `act 3` or `checkpoint 12`."""
    detail: str = ""


@dataclass(slots=True)
class Verified:
    """The numbers of what was verified so far."""

    rows: int = 0
    batches: int = 0
    acts: int = 0
    checkpoints: int = 0
    chains: int = 0
    pruned_rows: int = 0
    """Rows that a signed checkpoint says retention deleted."""
    signed_until: datetime | None = None
    """The time of the last checkpoint of the trail."""
    unsigned_batches: int = 0
    """Batches that no checkpoint of the trail has signed."""


def name_batch(batch: AuditBatch) -> str:
    """Return a batch in words."""
    return f"batch {batch.sequence} of chain {batch.writer}"


def name_numbers(what: str, numbers: range, writer: str | None = None) -> str:
    """Return consecutive numbers in words, such as `batches 4 to 6 of chain abc`."""
    several = f"{what}es" if what == "batch" else f"{what}s"
    named = f"{several} {numbers[0]} to {numbers[-1]}"
    if numbers[0] == numbers[-1]:  # more than `len` can count, after some forgeries
        named = f"{what} {numbers[0]}"
    return named if writer is None else f"{named} of chain {writer}"
