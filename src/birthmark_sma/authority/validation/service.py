"""Validate camera tokens: a bounded pool, one writer thread, one commit for each batch.

Called by web/api/validate.py, `sma validate` and the sandbox. For each batch the writer thread
1. opens the tokens, 2. looks up their devices, 3. judges each token, 4. records all tokens in the
replay ledger, 5. writes audit rows and counters, 6. commits. Then the answers leave.

An answer must never leave before its audit row is durable. Every FAIL must cost the same work, so
that neither the answer nor its time tells why a token failed.
"""

import asyncio
import contextlib
import logging
import secrets
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future
from datetime import datetime
from functools import partial
from time import perf_counter_ns
from typing import Any

from sqlalchemy import Connection

from birthmark_sma.authority.access.caller import Caller
from birthmark_sma.authority.kek.wrapping import NucHashIndex
from birthmark_sma.authority.key_tables.cache import KeyTableCache
from birthmark_sma.authority.rate_limits.limiter import RateLimits
from birthmark_sma.authority.server_metrics import VALIDATIONS, ServerMetrics
from birthmark_sma.authority.validation import replay_ledger
from birthmark_sma.authority.validation.activity_counter import ActivityCounter
from birthmark_sma.authority.validation.failure_budget import FailureBudget, judge_in_turns
from birthmark_sma.authority.validation.opening import Opening, TokenOpener
from birthmark_sma.authority.validation.records import (
    Attempt,
    AuditRow,
    FoundDevice,
    Steps,
    Validation,
    Watcher,
)
from birthmark_sma.authority.validation.store import ValidationStore
from birthmark_sma.config import ReplayPolicy
from birthmark_sma.errors import BirthmarkError, DatabaseUnavailableError
from birthmark_sma.protocol.camera_token import CameraToken, token_digest
from birthmark_sma.protocol.key_derivation import NORMATIVE, Derivation
from birthmark_sma.protocol.replay import Repeat
from birthmark_sma.protocol.verdict import (
    TEXTS,
    DeviceRecord,
    Reason,
    bind_to_derivation,
    decide,
)
from birthmark_sma.runtime.log_context import LoggedRequest
from birthmark_sma.runtime.submission import Answers
from birthmark_sma.storage.engine import Database
from birthmark_sma.storage.group_commit import Batch, GroupCommit
from birthmark_sma.storage.pool.pool import Pool, Reservation

_MOST_MICROSECONDS = 2**31 - 1  # the greatest INTEGER of PostgreSQL: 35 minutes

_log = logging.getLogger(__name__)


class Validator:
    """Validates camera tokens, from any thread or event loop."""

    def __init__(
        self,
        database: Database,
        store: ValidationStore,
        table_cache: KeyTableCache,
        nuc_hash_index: NucHashIndex,
        *,
        pool_limit: int,
        batch_limit: int,
        figures: ServerMetrics | None = None,
        rate_limits: RateLimits | None = None,
        replay: ReplayPolicy = ReplayPolicy.RECORD,
    ) -> None:
        # Never changed after this, so any thread may read it.
        self._figures = figures or ServerMetrics()
        self._table_cache = table_cache
        self._clock = database.clock
        self._opener = TokenOpener(table_cache.sizes, nuc_hash_index, self._figures)
        self._limits = rate_limits if rate_limits and rate_limits.limits_failures else None
        self._replay = replay
        # Set once by `watch`, read by the writer thread.
        self._watcher: Watcher | None = None
        self.activity = ActivityCounter(database, store)
        """The activity of devices. A server runs it as a background task."""
        # Owned by the writer thread: the store; FAILs by caller, rows and times of the last batch.
        self._store = store
        self._failed: Counter[str] = Counter()
        self._rows: Sequence[AuditRow] = ()
        self._begun = self._opened = 0
        # Last, because it starts the writer thread.
        self._writer: GroupCommit[Attempt, Validation] = GroupCommit(
            database,
            self._handle_batch,
            name="validation-writer",
            pool_limit=pool_limit,
            batch_limit=batch_limit,
            on_commit=self._on_commit,
            record_lost=replay_ledger.record_lost_answers,
            on_failure=partial(self._figures.batch_failed, VALIDATIONS),
        )

    def watch(self, watcher: Watcher) -> None:
        """Call `watcher` for every batch from now on. Its exceptions are logged, not raised."""
        self._watcher = watcher

    def submit_async(
        self,
        camera_token: CameraToken,
        caller: Caller,
        request: LoggedRequest | None = None,
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
        named = _name_and_beginning(request)
        attempt = Attempt(camera_token, caller, derivation, alternatives, object(), *named)
        return self._writer.submit_async(attempt, request, caller.partition)

    async def validate(self, camera_token: CameraToken, caller: Caller) -> Validation:
        """Judge a token and return its verdict. Raises the errors of `submit_async`."""
        return await self.submit_async(camera_token, caller)

    def submit_together(
        self,
        camera_tokens: Sequence[CameraToken],
        caller: Caller,
        request: LoggedRequest | None = None,
        room: Reservation | None = None,
        positions: Sequence[int] | None = None,
    ) -> "asyncio.Future[Answers[Validation]]":
        """Judge one or more tokens of one request in one transaction, in order.

        `positions` are those of the tokens in the body of the request, if it was a batch.

        Raises PoolFullError or ShuttingDownError at once, for all of them; with `room` in
        the pool, it is never full. The future raises DatabaseUnavailableError for all; a
        RateLimitedError stands in the place of its token.
        """
        same = NORMATIVE, (), object(), *_name_and_beginning(request)
        places: Sequence[int | None] = positions or [None] * len(camera_tokens)
        attempts = [
            Attempt(each, caller, *same, place)
            for each, place in zip(camera_tokens, places, strict=True)
        ]
        return self._writer.submit_together(attempts, request, caller.partition, room)

    def submit(
        self,
        camera_token: CameraToken,
        caller: Caller,
        derivation: Derivation = NORMATIVE,
        request_id: str | None = None,
    ) -> "Future[Validation]":
        """Judge a token, for a thread. Raises the errors of `submit_async`.

        No rate limit counts its FAIL.
        """
        began = perf_counter_ns()
        attempt = Attempt(camera_token, caller, derivation, (), None, request_id, began)
        return self._writer.submit(attempt, caller=caller.partition)

    @property
    def waiting(self) -> int:
        """Return the number of tokens that wait for the writer thread."""
        return self._writer.waiting

    @property
    def pool(self) -> Pool[Any]:
        """Return the pool, in which a caller of `Caller.partition` may reserve room."""
        return self._writer.pool

    def copy_figures(self) -> None:
        """Copy the writer's state to shared memory, where all processes can read it."""
        self._figures.copy_writer(VALIDATIONS, self._writer, waiting=self._writer.waiting)

    @property
    def writer(self) -> "GroupCommit[Attempt, Validation]":
        """Return the writer, for those who watch its health."""
        return self._writer

    def close(self) -> None:
        """Stop accepting tokens, judge and answer all that wait, then stop the writer thread."""
        self._writer.close()
        if self._writer.fault is None:  # or the database would be waited for
            with contextlib.suppress(DatabaseUnavailableError):
                self.activity.work(self._clock.now())

    # --- the methods below run in the writer thread only

    def _on_commit(self, batch: Batch) -> None:
        # FAILs count only after the commit: before it, the transaction may be tried again.
        for who, times in self._failed.items():
            assert self._limits is not None  # noqa: S101  FAILs are counted only with limits
            self._limits.failed(who, times)
        if self._limits is not None:
            self._limits.release_failures()  # after they were counted
        self.activity.count(self._rows)
        self._figures.batch(VALIDATIONS, batch)
        if self._watcher is not None:
            try:
                steps = Steps(self._begun, self._opened, batch.settled, batch.committed)
                self._watcher(batch, steps)
            except Exception:  # the batch is durable: its callers get their answers
                _log.exception("a batch could not be watched")

    def _handle_batch(
        self, transaction: Connection, attempts: Sequence[Attempt]
    ) -> Sequence[Validation | BirthmarkError]:
        """Judge a batch, write its audit rows and count them, all in this transaction.

        This may run twice for a batch, if the first transaction failed before its commit.
        """
        self._store.hold_statuses(transaction)
        now = self._clock.now()
        self._failed = Counter()  # new for each try, so that no FAIL counts twice
        self._begun = perf_counter_ns()
        keys = self._table_cache.keys
        openings = [self._opener.open(attempt, keys) for attempt in attempts]
        self._opened = perf_counter_ns()

        def judge(turn: Sequence[int]) -> list[Validation]:
            return self._judge_together(transaction, openings, turn, now)

        answers: Sequence[Validation | BirthmarkError]
        if self._limits is None:
            answers = judge(range(len(openings)))
        else:
            self._limits.release_failures()  # of a transaction that failed
            budget = FailureBudget(
                self._limits,
                [attempt.request for attempt in attempts],
                [attempt.caller.partition for attempt in attempts],
            )

            is_fail = partial(counts_as_fail, policy=self._replay)
            judged = judge_in_turns(budget, judge, is_fail)
            answers, self._failed = judged, budget.failures
        self._rows = [
            _audit_row(opening.attempt, answer, self._begun)
            for opening, answer in zip(openings, answers, strict=True)
            if isinstance(answer, Validation)  # tokens that a rate limit refused have no row
        ]
        if self._rows:
            self._store.write(transaction, self._rows, self._writer.next_mark)
        return answers

    def _judge_together(
        self,
        transaction: Connection,
        openings: list[Opening],
        turn: Sequence[int],
        now: datetime,
    ) -> list[Validation]:
        """Judge the tokens at these places of the batch."""
        devices = self._find_devices(transaction, openings, turn)
        attempts = [openings[at].attempt for at in turn]
        judged = [
            self._judge(openings[at], device, now) for at, device in zip(turn, devices, strict=True)
        ]
        # After the verdicts, because a row of the ledger says under which derivation it passed.
        validations = self._note_tokens(transaction, attempts, judged, now)
        if self._replay is ReplayPolicy.REFUSE_SAME_CALLER:
            began = self._writer.began
            return replay_ledger.recall_lost_answers(transaction, attempts, validations, began)
        return validations

    def _find_devices(
        self, transaction: Connection, openings: list[Opening], turn: Sequence[int]
    ) -> list[FoundDevice | None]:
        """Return the devices of the tokens at these places.

        If keys were rotated since the tokens were opened, replace their openings by new ones.
        """
        while True:
            # Equal work for every FAIL: a token that did not open is looked up as well, under a
            # random decoy that no device has. So the time does not tell why a token failed.
            sought = [openings[at].nuc_hash or secrets.token_bytes(32) for at in turn]
            found = self._store.find_devices(transaction, sought)
            generation = found.table_generation
            outdated = [at for at in turn if openings[at].keys.generation != generation]
            if not outdated:
                return [found.by_nuc_hash.get(each) for each in sought]
            keys = self._table_cache.poll(transaction)
            for at in outdated:
                openings[at] = self._opener.open(openings[at].submitted, keys)

    def _note_tokens(
        self,
        transaction: Connection,
        attempts: Sequence[Attempt],
        judged: Sequence[Validation],
        now: datetime,
    ) -> list[Validation]:
        """Record every token in the replay ledger, and return the verdicts with their repeats.

        A token that passed before under the other key derivation becomes a FAIL.
        """
        passes: dict[bytes, int] = {}
        keys = []
        for attempt, validation in zip(attempts, judged, strict=True):
            key = validation.digest
            if attempt.derivation is not NORMATIVE:
                key = token_digest(attempt.camera_token)
            keys.append(key)
            # The first PASS in a batch decides under which derivation a token passes.
            if not passes.get(key):
                passed = validation.reason is Reason.GENUINE
                passes[key] = attempt.derivation.number if passed else 0
        seen = list(map(replay_ledger.make_seen_token, attempts, judged))
        repeats, passed_under = replay_ledger.note(self._store, transaction, seen, now, passes)
        validations = []
        for attempt, validation, repeat, key in zip(attempts, judged, repeats, keys, strict=True):
            number = attempt.derivation.number
            reason = bind_to_derivation(validation.reason, number, passed_under[key])
            if repeat is not None or reason is not validation.reason:
                validation = validation._replace(reason=reason, repeat=repeat)  # noqa: PLW2901
            validations.append(validation)
        return validations

    def _judge(self, opening: Opening, device: FoundDevice | None, now: datetime) -> Validation:
        """Judge a token without regard to earlier submissions."""
        attempt = opening.attempt
        table_id = attempt.camera_token.table_id
        reason = decide(
            sizes=self._opener.sizes(attempt.derivation),
            table_id=table_id,
            key_index=attempt.camera_token.key_index,
            opened=opening.epochs,
            live=opening.keys.live_epochs(table_id, now),
            device=device
            and DeviceRecord(device.status, device.table_assignments, device.table_epochs),
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


def _name_and_beginning(request: LoggedRequest | None) -> tuple[str | None, int | None]:
    return (None, None) if request is None else (request.request_id, request.began)


def _audit_row(attempt: Attempt, validation: Validation, judged: int) -> AuditRow:
    camera_token, caller, repeat = attempt.camera_token, attempt.caller, validation.repeat
    began = attempt.began
    return AuditRow(  # in the order of its fields, as names would double the cost
        camera_token.encrypted_nuc_hash,
        camera_token.table_id,
        camera_token.key_index,
        *TEXTS[validation.reason],
        validation.device_serial,
        validation.validated_at,
        caller.address,
        caller.key_id,
        None if repeat is None else repeat.value,
        attempt.request_id,
        attempt.batch_position,
        validation.digest,
        None if began is None else min((judged - began) // 1_000, _MOST_MICROSECONDS),
    )
