"""The records of validation: attempts, verdicts, and the rows that a batch reads and writes.

`service` makes them, the stores read and write them. The statements of the stores are built from
the fields of `AuditRow` and `LedgerEntry`, so a field has the name of its column, and the order of
the fields is the order of the columns in the INSERT. This module must not import a store.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from operator import attrgetter
from typing import NamedTuple, TypeAlias

from sqlalchemy import Connection, func, select

from birthmark_sma.authority.access.caller import Caller
from birthmark_sma.protocol.camera_token import CameraToken
from birthmark_sma.protocol.key_derivation import NORMATIVE, Derivation
from birthmark_sma.protocol.replay import Repeat
from birthmark_sma.protocol.verdict import DeviceStatus, Reason, Verdict
from birthmark_sma.storage.group_commit import Batch
from birthmark_sma.storage.schema.validations import validation_history as history


class Attempt(NamedTuple):
    """A camera token to judge, with its caller."""

    camera_token: CameraToken
    caller: Caller
    derivation: Derivation = NORMATIVE
    """The key derivation of the endpoint that received it. No other derivation is tried."""
    alternatives: Sequence[CameraToken] = ()
    """The same ciphertext with other table ids: published cameras send all three of theirs."""
    request: object = None
    """An object that identifies its request; None if no rate limit counts its FAIL."""
    request_id: str | None = None
    began: int | None = None
    """The beginning of the request, in nanoseconds of `perf_counter_ns`."""
    batch_position: int | None = None
    """The index of the token in the body of a batch, from 0; None for a single token."""


class Validation(NamedTuple):
    """A judged camera token, as recorded in the audit log.

    Serial and family are set if the device is known, even on FAIL. A response contains them only on
    PASS, and only if the disclosure setting allows it.
    """

    reason: Reason
    device_serial: str | None
    device_family: str | None
    validated_at: datetime
    digest: bytes
    """The token's digest in the replay ledger: 16 bytes."""
    repeat: Repeat | None = None
    """The kind of repeat; None if the token was never seen before."""
    answer_was_lost: bool = False
    """This caller submitted the token before, and the verdict did not reach it."""
    in_doubt: bool = False
    """This caller submitted the token before, and it is unknown yet if the verdict reached it."""

    @property
    def verdict(self) -> Verdict:
        """Return PASS or FAIL."""
        return self.reason.verdict


class Steps(NamedTuple):
    """The times of the steps of a batch, in nanoseconds of `perf_counter_ns`."""

    begun: int
    """The writer began to open the tokens."""
    opened: int
    settled: int
    """All tokens are judged. PostgreSQL writes the audit rows with the commit."""
    committed: int


Watcher: TypeAlias = Callable[[Batch, Steps], None]
"""Called for each batch in the writer thread, after the commit and before the answers leave."""


class FoundDevice(NamedTuple):
    """The fields of a registered device that a verdict needs."""

    device_serial: str
    device_family: str
    status: DeviceStatus
    table_assignments: Sequence[int]
    table_epochs: Sequence[int]
    """Parallel to `table_assignments`; empty if all epochs are 0."""


class FoundDevices(NamedTuple):
    """The devices of a batch by the HMAC of their NUC hash, and the key tables' generation.

    Both are of one statement, so they are of one state of the database.
    """

    by_nuc_hash: Mapping[bytes, FoundDevice]
    table_generation: int


class LedgerEntry(NamedTuple):
    """A token in the replay ledger, without its digest and the time of its first submission."""

    first_caller: str
    """The first caller, or "" if the row exists only for its `passed_under`."""
    passed_under: int
    """The number of the key derivation under which the token passed, or 0 for none."""


class AuditRow(NamedTuple):
    """The row of the audit log for one judged camera token.

    `device_serial` is set if the device is known, also for a FAIL. `caller` is the id of the
    caller's access key. `repeat` is the kind of repeat, or None for the first time. The tokens of
    one request share its `request_id`, and two requests may have the same one. `token_digest` is
    the token's digest in the replay ledger. `waited_us` is the time from the beginning of the
    request to the judgement, in microseconds.
    """

    encrypted_nuc_hash: bytes
    table_id: int
    key_index: int
    validation_result: str
    reason: str
    device_serial: str | None
    validated_at: datetime
    request_ip: str | None
    caller: str | None = None
    repeat: str | None = None
    request_id: str | None = None
    batch_position: int | None = None
    token_digest: bytes | None = None
    waited_us: int | None = None


_time_and_reason = attrgetter("validated_at", "reason")
_time_and_repeat = attrgetter("validated_at", "repeat")


class Count(NamedTuple):
    """The number of rows of a batch with one reason, or one kind of repeat, in one minute."""

    counted: str
    """`verdict` or `repeat`, as in `running_totals`."""
    minute: datetime
    name: str
    times: int


def floor_to_minute(time: datetime) -> datetime:
    """Return the start of the minute of `time`, in UTC."""
    return time.astimezone(UTC).replace(second=0, microsecond=0)


def count_batch(rows: Sequence[AuditRow]) -> list[Count]:
    """Return the counts of some audit rows, each minute and name once."""
    # The rows of a batch have the same time, so few times remain to be rounded.
    verdicts = Counter(map(_time_and_reason, rows))
    repeats = Counter(map(_time_and_repeat, [row for row in rows if row.repeat is not None]))
    counts: Counter[tuple[str, datetime, str]] = Counter()
    for counted, found in (("verdict", verdicts), ("repeat", repeats)):
        for (time, name), times in found.items():
            counts[counted, floor_to_minute(time), name] += times
    return [Count(*key, times) for key, times in counts.items()]


def count_rows(connection: Connection) -> int:
    """Return the number of audit rows. This scans the whole audit log, so it is slow."""
    return connection.execute(select(func.count()).select_from(history)).scalar_one()
