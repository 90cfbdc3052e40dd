"""Validate camera tokens: a bounded pool, one writer thread, one commit for each batch.

Called by web/api/validate.py, `sma validate` and the sandbox. For each batch the writer thread
1. opens the tokens, 2. looks up their devices, 3. judges each token, 4. records all tokens in the
replay ledger, 5. writes audit rows and counters, 6. commits. Then the answers leave.

An answer must never leave before its audit row is durable. Every FAIL must cost the same work, so
that neither the answer nor its time tells why a token failed.
"""

import asyncio
import logging
import secrets
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from datetime import datetime
from functools import partial
from time import perf_counter_ns
from typing import NamedTuple, TypeAlias

from sqlalchemy import Connection

from birthmark_sma.authority.access.caller import Caller, ledger_partition
from birthmark_sma.authority.kek.wrapping import NucHashIndex
from birthmark_sma.authority.key_tables.cache import KeyTableCache
from birthmark_sma.authority.rate_limits.limiter import RateLimits
from birthmark_sma.authority.server_metrics import (
    TABLE_RANGES,
    VALIDATIONS,
    Figures,
    tables_a_range,
)
from birthmark_sma.authority.validation import replay_ledger
from birthmark_sma.authority.validation.audit_writer import AuditWriter
from birthmark_sma.authority.validation.device_lookup import FoundDevice, find_standings
from birthmark_sma.authority.validation.failure_budget import FailureTurns
from birthmark_sma.authority.validation.records import AuditRow
from birthmark_sma.config import ReplayPolicy
from birthmark_sma.errors import (
    BirthmarkError,
    DatabaseUnavailableError,
    UnopenedCameraTokenError,
)
from birthmark_sma.protocol.camera_token import CameraToken, open_camera_token
from birthmark_sma.protocol.key_derivation import NORMATIVE, Derivation
from birthmark_sma.protocol.key_table import PUBLISHED_SIZES, TableSizes
from birthmark_sma.protocol.replay import Repeat, SeenToken, token_digest
from birthmark_sma.protocol.verdict import (
    DeviceRecord,
    Reason,
    Verdict,
    bind_to_derivation,
    decide,
)
from birthmark_sma.runtime.log_context import LoggedRequest
from birthmark_sma.storage.engine import Database
from birthmark_sma.storage.group_commit import Answers, Batch, GroupCommit


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
    """All tokens are judged and all rows are written."""
    committed: int


Watcher: TypeAlias = Callable[[Batch, Steps], None]
"""Called for each batch in the writer thread, after the commit and before the answers leave."""

_DOUBTFUL_NANOSECONDS = 1_000_000_000
"""One second. A transaction that takes longer may have waited for the lock of another process that
judged the same token. That process may not have recorded yet that its answer was lost, so the
repeat is in doubt (docs/adr/0009)."""

_log = logging.getLogger(__name__)


class Validator:
    """Validates camera tokens, from any thread or event loop."""

    def __init__(
        self,
        database: Database,
        table_cache: KeyTableCache,
        nuc_hash_index: NucHashIndex,
        *,
        pool_limit: int,
        batch_limit: int,
        figures: Figures | None = None,
        rate_limits: RateLimits | None = None,
        replay: ReplayPolicy = ReplayPolicy.RECORD,
    ) -> None:
        self._figures = figures or Figures()
        # Shared memory: the slots of the ranges are adjacent, and this is the first one.
        self._ranges = TABLE_RANGES.place["0",]
        self._tables_a_range = tables_a_range(table_cache.sizes.tables)
        self._table_cache = table_cache
        self._clock = database.clock
        # Published clients draw one of 1,000 key indices, whatever this authority's sizes are.
        self._published_sizes = TableSizes(table_cache.sizes.tables, PUBLISHED_SIZES.keys_per_table)
        self._nuc_hash_index = nuc_hash_index
        self._trail = AuditWriter()
        self._watcher: Watcher | None = None
        self._limits = rate_limits if rate_limits and rate_limits.limits_failures else None
        self._replay = replay
        # Owned by the writer thread: FAILs by caller, and times, of the batch under way.
        self._failed: Counter[str] = Counter()
        self._begun = self._opened = 0
        self._writer: GroupCommit[Attempt, Validation] = GroupCommit(
            database,
            self._settle,
            name="validation-writer",
            pool_limit=pool_limit,
            batch_limit=batch_limit,
            note=self._note,
            note_lost=_note_lost_answers,
            note_failure=partial(self._figures.batch_failed, VALIDATIONS),
        )

    def watch(self, watcher: Watcher) -> None:
        """Call `watcher` for every batch from now on. Its exceptions are logged, not raised."""
        self._watcher = watcher

    def submit_async(
        self,
        camera_token: CameraToken,
        caller: Caller,
        origin: LoggedRequest | None = None,
        derivation: Derivation = NORMATIVE,
        alternatives: Sequence[CameraToken] = (),
    ) -> "asyncio.Future[Validation]":
        """Judge a token, for a coroutine. The future is done once the audit row is durable.

        With `alternatives`, the one token that opens is judged and recorded. If none opens, or more
        than one, `camera_token` is recorded as a FAIL.

        Raises PoolFullError or ShuttingDownError at once. The future raises
        DatabaseUnavailableError if the verdict could not be recorded, and then there is no verdict,
        or RateLimitedError if the caller has exceeded its limit of FAILs meanwhile.
        """
        attempt = Attempt(camera_token, caller, derivation, alternatives, object())
        return self._writer.submit_async(attempt, origin)

    async def validate(self, camera_token: CameraToken, caller: Caller) -> Validation:
        """Judge a token and return its verdict. Raises the errors of `submit_async`."""
        return await self.submit_async(camera_token, caller)

    def offer_together(
        self,
        camera_tokens: Sequence[CameraToken],
        caller: Caller,
        origin: LoggedRequest | None = None,
    ) -> "asyncio.Future[Answers[Validation]]":
        """Judge one or more tokens of one request in one transaction, in order.

        Raises PoolFullError or ShuttingDownError at once, for all of them. The future raises
        DatabaseUnavailableError for all; a RateLimitedError stands in the place of its token.
        """
        request = object()
        attempts = [Attempt(each, caller, request=request) for each in camera_tokens]
        return self._writer.offer_together(attempts, origin)

    def submit(
        self, camera_token: CameraToken, caller: Caller, derivation: Derivation = NORMATIVE
    ) -> "Future[Validation]":
        """Judge a token, for a thread. Raises the errors of `submit_async`.

        No rate limit counts its FAIL.
        """
        return self._writer.submit(Attempt(camera_token, caller, derivation))

    @property
    def waiting(self) -> int:
        """Return the number of tokens that wait for the writer thread."""
        return self._writer.waiting

    def copy_figures(self) -> None:
        """Copy the writer's counters to shared memory, where all processes can read them."""
        self._figures.copy_writer(
            VALIDATIONS, waiting=self._writer.waiting, refused=self._writer.refused
        )

    @property
    def running(self) -> bool:
        """Return True if tokens are accepted and judged."""
        return self._writer.running

    @property
    def failure(self) -> DatabaseUnavailableError | None:
        """Return the error of the last batch if it failed within the last 10 seconds, else None."""
        return self._writer.failure

    def close(self) -> None:
        """Stop accepting tokens, judge and answer all that wait, then stop the writer thread."""
        self._writer.close()

    # --- in the writer thread

    def _note(self, batch: Batch) -> None:
        # FAILs count only after the commit: before it, the transaction may be tried again.
        for who, times in self._failed.items():
            assert self._limits is not None  # noqa: S101  FAILs are counted only with limits
            self._limits.failed(who, times)
        self._figures.batch(VALIDATIONS, batch)
        if self._watcher is not None:
            try:
                steps = Steps(self._begun, self._opened, batch.settled, batch.committed)
                self._watcher(batch, steps)
            except Exception:  # the batch is durable: its callers get their answers
                _log.exception("a batch could not be watched")

    def _settle(
        self, transaction: Connection, attempts: Sequence[Attempt]
    ) -> Sequence[Validation | BirthmarkError]:
        """Judge a batch, write its audit rows and count them, all in this transaction.

        This may run twice for a batch, if the first transaction failed before its commit.
        """
        now = self._clock.now()
        self._failed = Counter()  # new for each try, so that no FAIL counts twice
        self._begun = perf_counter_ns()
        attempts, opened = zip(*map(self._open_attempt, attempts), strict=True)
        self._opened = perf_counter_ns()
        if self._limits is None:
            validations = self._judge_together(transaction, attempts, opened, now)
            self._trail.write(transaction, list(map(_audit_row, attempts, validations)))
            return validations
        return self._judge_in_turns(transaction, attempts, opened, now, self._limits)

    def _judge_in_turns(
        self,
        transaction: Connection,
        attempts: Sequence[Attempt],
        opened: Sequence[bytes | None],
        now: datetime,
        limits: RateLimits,
    ) -> Sequence[Validation | BirthmarkError]:
        """Judge the requests of a batch in turns, and enforce the rate limit of FAILs.

        A request that could exceed its caller's limit waits until the verdicts of the earlier ones
        are known. Refused tokens get a RateLimitedError and no audit row.
        """
        answers: dict[int, Validation | BirthmarkError] = {}  # by index of the attempt
        turns = FailureTurns(
            limits,
            [attempt.request for attempt in attempts],
            [ledger_partition(attempt.caller) for attempt in attempts],
        )
        while turn := turns.next():
            judged = self._judge_together(
                transaction, [attempts[at] for at in turn], [opened[at] for at in turn], now
            )
            for at, validation in zip(turn, judged, strict=True):
                answers[at] = validation
                if counts_as_fail(validation, self._replay):
                    turns.failed(at)
        self._failed = turns.failures  # `_note` records them in the rate limits after the commit
        answers |= turns.refused
        in_order = [answers[at] for at in range(len(attempts))]
        rows = [
            _audit_row(attempt, answer)
            for attempt, answer in zip(attempts, in_order, strict=True)
            if isinstance(answer, Validation)
        ]
        if rows:
            self._trail.write(transaction, rows)
        return in_order

    def _judge_together(
        self,
        transaction: Connection,
        attempts: Sequence[Attempt],
        opened: Sequence[bytes | None],
        now: datetime,
    ) -> list[Validation]:
        # Equal work for every FAIL: a token that did not open is looked up as well, under a random
        # decoy that no device has. So the time does not tell why a token failed.
        sought = [nuc_hash or secrets.token_bytes(32) for nuc_hash in opened]
        standings = find_standings(transaction, sought)
        judged = [
            self._judge(attempt, nuc_hash is not None, standings.get(key), now)
            for attempt, nuc_hash, key in zip(attempts, opened, sought, strict=True)
        ]
        validations = self._note_sights(transaction, attempts, judged, now)
        if self._replay is ReplayPolicy.REFUSE_SAME_CALLER and any(
            validation.repeat is Repeat.REPLAYED for validation in validations
        ):
            return self._recall_lost_answers(transaction, attempts, validations)
        return validations

    def _note_sights(
        self,
        transaction: Connection,
        attempts: Sequence[Attempt],
        judged: Sequence[Validation],
        now: datetime,
    ) -> list[Validation]:
        """Record every token in the replay ledger, and return the verdicts with their repeats.

        A token that passed before under the other key derivation becomes a FAIL.
        """
        sightings = []
        passes: dict[bytes, int] = {}
        places = []
        for attempt, validation in zip(attempts, judged, strict=True):
            place = validation.digest
            if attempt.derivation is not NORMATIVE:
                place = token_digest(attempt.camera_token)
            sightings.append(SeenToken(validation.digest, attempt.caller.identity))
            places.append(place)
            passes_now = validation.reason is Reason.GENUINE
            # The first PASS in a batch decides under which derivation a token passes.
            if not passes.get(place):
                passes[place] = attempt.derivation.number if passes_now else 0
        repeats, passed_under = replay_ledger.note(transaction, sightings, now, passes)
        validations = []
        for attempt, validation, repeat, place in zip(
            attempts, judged, repeats, places, strict=True
        ):
            number = attempt.derivation.number
            reason = bind_to_derivation(validation.reason, number, passed_under[place])
            if repeat is not None or reason is not validation.reason:
                validation = validation._replace(reason=reason, repeat=repeat)  # noqa: PLW2901
            validations.append(validation)
        return validations

    def _recall_lost_answers(
        self,
        transaction: Connection,
        attempts: Sequence[Attempt],
        validations: Sequence[Validation],
    ) -> list[Validation]:
        """Mark the replays whose caller did not get the earlier verdict.

        Each lost answer is marked once, and then deleted. The other replays are marked as in doubt
        if this transaction has taken longer than a second.
        """
        sightings = [
            SeenToken(validation.digest, attempt.caller.identity)
            for attempt, validation in zip(attempts, validations, strict=True)
        ]
        lost = replay_ledger.take_lost_answers(
            transaction,
            {
                sighting
                for sighting, validation in zip(sightings, validations, strict=True)
                if validation.repeat is Repeat.REPLAYED
            },
        )
        in_doubt = perf_counter_ns() - self._writer.began > _DOUBTFUL_NANOSECONDS
        recalled = []
        for sighting, validation in zip(sightings, validations, strict=True):
            if validation.repeat is not Repeat.REPLAYED:
                recalled.append(validation)
            elif sighting in lost:
                lost.remove(sighting)
                recalled.append(validation._replace(answer_was_lost=True))
            else:
                recalled.append(validation._replace(in_doubt=in_doubt))
        return recalled

    def _sizes_of(self, derivation: Derivation) -> TableSizes:
        return self._table_cache.sizes if derivation is NORMATIVE else self._published_sizes

    def _open_attempt(self, attempt: Attempt) -> tuple[Attempt, bytes | None]:
        """Return the attempt with the one token to judge, and the HMAC of its NUC hash.

        The HMAC is None if no token opens, or more than one.
        """
        if not attempt.alternatives:
            return attempt, self._open(attempt.camera_token, attempt.derivation)
        # All are tried, so that the time does not tell which token opened, or if any did. GCM does
        # not commit to a key: a token that opens under two keys was forged to do so, and fails.
        tried = dict.fromkeys((attempt.camera_token, *attempt.alternatives))
        found = [(each, self._open(each, attempt.derivation)) for each in tried]
        opened = [(each, nuc_hash) for each, nuc_hash in found if nuc_hash is not None]
        if len(opened) != 1:
            return attempt, None
        [(camera_token, nuc_hash)] = opened
        return attempt._replace(camera_token=camera_token), nuc_hash

    def _open(self, camera_token: CameraToken, derivation: Derivation) -> bytes | None:
        """Return the HMAC of the NUC hash inside, or None if the token does not open."""
        sizes = self._sizes_of(derivation)
        if not (
            sizes.has_table(camera_token.table_id) and sizes.has_key_index(camera_token.key_index)
        ):
            return None
        # No lock: only the writer thread adds to these slots.
        self._figures.sheet[self._ranges + camera_token.table_id // self._tables_a_range] += 1
        key = self._table_cache.derived_key(
            camera_token.table_id, camera_token.key_index, derivation
        )
        try:
            return self._nuc_hash_index.of(open_camera_token(camera_token, key))
        except UnopenedCameraTokenError:
            return None

    def _judge(
        self,
        attempt: Attempt,
        opened: bool,  # noqa: FBT001
        device: FoundDevice | None,
        now: datetime,
    ) -> Validation:
        """Judge a token without regard to earlier submissions."""
        reason = decide(
            sizes=self._sizes_of(attempt.derivation),
            table_id=attempt.camera_token.table_id,
            key_index=attempt.camera_token.key_index,
            opened=opened,
            standing=None
            if device is None
            else DeviceRecord(device.status, device.table_assignments),
        )
        digest = token_digest(attempt.camera_token, attempt.derivation)
        if device is None:
            return Validation(reason, None, None, now, digest)
        return Validation(reason, device.device_serial, device.device_family, now, digest)


def is_withheld(validation: Validation, policy: ReplayPolicy) -> bool:
    """Return True if the verdict is withheld, because the caller got it for an earlier request."""
    return (
        validation.repeat is Repeat.REPLAYED
        and policy is ReplayPolicy.REFUSE_SAME_CALLER
        and not validation.answer_was_lost
    )


def counts_as_fail(validation: Validation, policy: ReplayPolicy) -> bool:
    """Return True if the verdict counts against the caller's rate limit of FAILs.

    A withheld verdict does not count: the remaining quota in the response would reveal it.
    """
    return validation.reason is not Reason.GENUINE and not is_withheld(validation, policy)


def _note_lost_answers(transaction: Connection, lost: Sequence[tuple[Attempt, Validation]]) -> None:
    """Record the lost answers, so that each caller can get its verdict once more.

    A replay whose verdict was withheld has no answer to lose.
    """
    replay_ledger.note_lost_answers(
        transaction,
        {
            SeenToken(validation.digest, attempt.caller.identity)
            for attempt, validation in lost
            if validation.repeat is not Repeat.REPLAYED or validation.answer_was_lost
        },
    )


def _audit_row(attempt: Attempt, validation: Validation) -> AuditRow:
    camera_token = attempt.camera_token
    return AuditRow(
        encrypted_nuc_hash=camera_token.encrypted_nuc_hash,
        table_id=camera_token.table_id,
        key_index=camera_token.key_index,
        validation_result=validation.verdict.value,
        reason=validation.reason.value,
        device_serial=validation.device_serial,
        validated_at=validation.validated_at,
        request_ip=attempt.caller.address,
        caller=attempt.caller.key_id,
        repeat=None if validation.repeat is None else validation.repeat.value,
    )
