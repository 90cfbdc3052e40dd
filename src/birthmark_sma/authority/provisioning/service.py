"""Provision a device: sign its certificate, assign three key tables, and register it.

A request for a serial that is registered is a re-enrolment, if `provisioning.re_enrolment` allows
it: then the device keeps its key tables, and its certificate is replaced.

Called by web/api/provision.py and the provisioning commands. The order of the steps matters:
1. Check the request. 2. Prepare the certificate, check it against its profile, sign it. 3. Write
the device and the stored response in one transaction. 4. Respond. UNIQUE constraints decide every
race. No response must leave before the commit, and a refused request must leave no change.
"""

import asyncio
import contextlib
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context
from datetime import datetime
from functools import partial
from typing import Any, NamedTuple, TypeVar

from sqlalchemy import Connection

from birthmark_sma.authority.devices.store import Device
from birthmark_sma.authority.idempotency.sealing import IDEMPOTENCY_PERIOD
from birthmark_sma.authority.provisioning import enrolment, re_enrolment
from birthmark_sma.authority.provisioning.idempotency import StoredResponses
from birthmark_sma.authority.provisioning.issuance import (
    CheckedRequest,
    DeviceIssuer,
    IssuedDevice,
    Provisioned,
    ProvisioningRequest,
)
from birthmark_sma.authority.provisioning.registration import (
    MOST_ATTEMPTS,
    OUTDATED,
    find_conflict,
    register,
)
from birthmark_sma.authority.server_metrics import PROVISIONINGS, Outcome, ServerMetrics
from birthmark_sma.errors import (
    BirthmarkError,
    ConflictError,
    DatabaseUnavailableError,
    DeviceAlreadyProvisionedError,
    PoolFullError,
    ShuttingDownError,
)
from birthmark_sma.runtime.cpu_affinity import unpin
from birthmark_sma.runtime.log_context import current_request
from birthmark_sma.storage.engine import Database
from birthmark_sma.storage.group_commit import BatchHandler, GroupCommit
from birthmark_sma.storage.outages.deadlines import QUICK_SECONDS
from birthmark_sma.storage.outages.retries import retry

__all__ = ["Provisioned", "Provisioner", "ProvisioningRequest"]

_POOL_LIMIT = 1_000  # requests under way; more get PoolFullError
_BATCH_LIMIT = 250  # devices in one transaction
_SIGNERS_THAT_WAIT = 2
"""The number of signing threads is the number of cores plus this, as each also waits for reads."""

Result = TypeVar("Result")

_log = logging.getLogger(__name__)


class Provisioner:
    """Provisions devices, from any thread or event loop.

    A thread pool signs the certificates, as an RSA-4096 signature takes milliseconds of a core. One
    writer thread registers the signed devices in batches. `renewal.service` uses both as well:
    `more_items` says how the writer handles its items, by their type.
    """

    def __init__(
        self,
        database: Database,
        maker: DeviceIssuer,
        first_answers: StoredResponses,
        figures: ServerMetrics | None = None,
        more_items: Mapping[type, BatchHandler[Any, Any]] | None = None,
    ) -> None:
        self._figures = figures or ServerMetrics()
        self._database = database
        self._maker = maker
        self._first_answers = first_answers
        # Owned by the event loop: requests under way, in all and by caller.
        self._under_way = 0
        self._under_way_of: Counter[str] = Counter()
        self._signers = ThreadPoolExecutor(
            (os.cpu_count() or 1) + _SIGNERS_THAT_WAIT,
            thread_name_prefix="signer",
            # RSA signatures run without the interpreter's lock, so they may use every core.
            initializer=unpin if maker.takes_long else None,
        )
        self._handlers = {IssuedDevice: self._register, **(more_items or {})}
        self._writer: GroupCommit[Any, Any] = GroupCommit(
            database,
            self._handle,
            name="provisioning-writer",
            pool_limit=_POOL_LIMIT,
            batch_limit=_BATCH_LIMIT,
            on_commit=partial(self._figures.batch, PROVISIONINGS),
            on_failure=partial(self._figures.batch_failed, PROVISIONINGS),
        )

    def check_room(self, caller: str | None) -> None:
        """Raise PoolFullError if a request of this caller would be refused now.

        A caller may have as many requests under way as are free, so one caller alone gets half.
        `caller` is a name of `Caller.partition`; None stands for one that has no share of its own.
        Call this in the event loop, before the body of the request is read.
        """
        if not self.has_room(caller):
            self._figures.provisioned(Outcome.OVERLOADED)
            raise PoolFullError

    def has_room(self, caller: str | None) -> bool:
        """Return False if a request of this caller would be refused now, as `check_room` says."""
        own = 0 if caller is None else self._under_way_of[caller]
        return own < _POOL_LIMIT - self._under_way

    @contextmanager
    def admitted(self, caller: str | None) -> Iterator[None]:
        """Count a request as under way. Raises PoolFullError if the caller has no room."""
        if not self.has_room(caller):
            raise PoolFullError
        self._under_way += 1
        if caller is not None:
            self._under_way_of[caller] += 1
        try:
            yield
        finally:
            self._under_way -= 1
            if caller is not None:
                self._under_way_of[caller] -= 1
                if not self._under_way_of[caller]:
                    del self._under_way_of[caller]

    def start(self, work: Callable[..., Result], *arguments: Any) -> "Future[Result]":
        """Run `work` in a signing thread. Raises ShuttingDownError."""
        try:
            # The copied context has the request, which log lines of the thread then name.
            return self._signers.submit(copy_context().run, work, *arguments)
        except RuntimeError:  # ThreadPoolExecutor.submit raises it after shutdown
            raise ShuttingDownError from None

    async def provision(
        self, request: ProvisioningRequest, caller: str | None = None
    ) -> Provisioned:
        """Provision a device, for a coroutine. Raises the errors of `provision_device`.

        `caller` is that of `check_room`. Also counts the outcome for the metrics.
        """
        outcome = Outcome.FAILED
        try:
            with self.admitted(caller):
                provisioned, outcome = await self._provision(request)
            return provisioned
        except BirthmarkError as error:
            outcome = classify(error)
            raise
        finally:
            self._figures.provisioned(outcome)

    async def _provision(self, request: ProvisioningRequest) -> tuple[Provisioned, Outcome]:
        for _ in range(MOST_ATTEMPTS - 1):
            with contextlib.suppress(*OUTDATED):
                return await self._provision_once(request)
        return await self._provision_once(request)

    async def _provision_once(self, request: ProvisioningRequest) -> tuple[Provisioned, Outcome]:
        # Two steps, so that no signing thread waits for a commit.
        registering = await asyncio.wrap_future(self.start(self._sign, request))
        provisioned = await asyncio.wrap_future(registering.response)
        return provisioned, registering.judge(provisioned)

    def provision_device(self, request: ProvisioningRequest) -> Provisioned:
        """Provision a device, for a thread. Return the response once the device is durable.

        A repeated request with the same Idempotency-Key returns the stored response. A re-enrolment
        is logged.

        Raises PkiError for a refused key, CSR or serial, DeviceDescriptionRefusedError for a family
        or app version, ConflictError if the serial, the public key or the NUC hash is registered,
        EnrolmentRefusedError, IdempotencyKeyReusedError, KeyTablesRotatedError, PoolFullError,
        ShuttingDownError and DatabaseUnavailableError.
        """
        for _ in range(MOST_ATTEMPTS - 1):
            with contextlib.suppress(*OUTDATED):
                return self._provision_in_thread(request)
        return self._provision_in_thread(request)

    def _provision_in_thread(self, request: ProvisioningRequest) -> Provisioned:
        registering = self._sign(request)
        provisioned = registering.response.result()
        registering.judge(provisioned)
        return provisioned

    @property
    def writer(self) -> GroupCommit[Any, Any]:
        """Return the writer, for renewals and for those who watch its health."""
        return self._writer

    def copy_figures(self) -> None:
        """Copy the writer's state to shared memory, where all processes can read it."""
        self._figures.copy_writer(PROVISIONINGS, self._writer, waiting=self._under_way)

    def close(self) -> None:
        """Finish the requests under way, then stop all threads."""
        # Signers first: a signing thread submits its device to the writer before it ends.
        self._signers.shutdown()
        self._writer.close()

    # --- in a signing thread

    def _sign(self, request: ProvisioningRequest) -> "_Registering":
        """Prepare a device and submit it to the writer; return the future of the response."""
        ready = self._prepare(request)
        if isinstance(ready, IssuedDevice):
            return _Registering(self._writer.submit(ready, current_request()), ready)
        answered: Future[Provisioned] = Future()
        answered.set_result(ready)
        return _Registering(answered, None)

    def _prepare(self, request: ProvisioningRequest) -> Provisioned | IssuedDevice:
        """Return the signed device, or the stored response if the request was answered before."""
        checked = self._maker.check(request)
        clock = self._database.clock
        since = clock.expired_before(IDEMPOTENCY_PERIOD)
        found = retry(partial(self._look_up, request, checked, since))
        if isinstance(found, BirthmarkError):
            raise found
        if isinstance(found, Provisioned):
            return found
        return self._maker.make(checked, clock.now(), found)

    def _look_up(
        self, request: ProvisioningRequest, checked: CheckedRequest, since: datetime
    ) -> Provisioned | Device | BirthmarkError | None:
        """Return the stored response of a repeated request, or why another one is refused.

        Return the device if this is a re-enrolment, None if it is a new device. A conflict that is
        already certain must not cost a signature. This read decides no race; the UNIQUE constraints
        and the comparison in `re_enrolment` do, in the writer's transaction.
        """
        with self._database.read(QUICK_SECONDS) as connection:
            # Before the signature: another process may have changed what is signed and given.
            self._maker.follow_changes(connection)
            found: Device | BirthmarkError | None = find_conflict(
                connection,
                request.device_serial,
                checked.public_key_fingerprint,
                checked.nuc_hash_index,
            )
            refusal = enrolment.find_refusal(connection, request)
            is_registered = isinstance(found, DeviceAlreadyProvisionedError)
            if is_registered:
                found = re_enrolment.find_replaced(connection, checked)
                if refusal is not None and not isinstance(found, DeviceAlreadyProvisionedError):
                    found = None  # the refusal says less about the device
            # Stored responses are read last: if the first request has taken the serial or used up
            # the access key, its response was committed with that, so it is found here.
            known = self._first_answers.find(connection, request, since)
            if known is None and is_registered and refusal is None:
                known = self._first_answers.find_of_lapsed_key(
                    connection, request, since, self._database.clock.now()
                )
        if known is not None:
            return known
        return found if isinstance(found, BirthmarkError) else refusal or found

    # --- in the writer thread

    def _handle(self, transaction: Connection, items: Sequence[Any]) -> list[Any]:
        """Hand the items to the handlers of their types; return the answers in their order."""
        answers: dict[int, object] = {}
        for kind, handler in self._handlers.items():
            places = [place for place, item in enumerate(items) if isinstance(item, kind)]
            if places:
                handled = handler(transaction, [items[place] for place in places])
                answers |= zip(places, handled, strict=True)
        return [answers[place] for place in range(len(items))]

    def _register(
        self, transaction: Connection, candidates: Sequence[IssuedDevice]
    ) -> list[Provisioned | BirthmarkError]:
        return register(transaction, candidates, self._first_answers, self._database.clock)


class _Registering(NamedTuple):
    """The future of a response, and the device that was submitted, or None for a known response."""

    response: "Future[Provisioned]"
    issued: IssuedDevice | None

    def judge(self, response: Provisioned) -> Outcome:
        """Return the outcome of a request that got this response. Log a re-enrolment."""
        issued = self.issued
        if (
            issued is None
            or issued.replaces is None
            # Otherwise the first of two equal requests was registered.
            or issued.provisioning_id != response.provisioning_id
        ):
            return Outcome.PROVISIONED
        _log.info(
            "re-enrolled %s as %s: its certificate %s is revoked as superseded",
            issued.device.device_serial,
            issued.provisioning_id,
            issued.replaces,
        )
        return Outcome.RE_ENROLLED


def classify(error: BirthmarkError) -> Outcome:
    """Return the outcome, for the metrics, of a request that raised this error."""
    if isinstance(error, ConflictError):
        return Outcome.CONFLICT
    if isinstance(error, PoolFullError | ShuttingDownError):
        return Outcome.OVERLOADED
    if isinstance(error, (DatabaseUnavailableError, *OUTDATED)):
        return Outcome.UNAVAILABLE
    return Outcome.REFUSED
