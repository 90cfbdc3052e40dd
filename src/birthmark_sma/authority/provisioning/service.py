"""Provision a device: certificate, three key tables, and a place in the register.

In this order: the request is checked, the certificate prepared, checked and signed, then device
and first answer are written in one transaction, and only then is there an answer. UNIQUE
constraints decide races; whoever loses has changed nothing.
"""

import asyncio
import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from functools import partial

from sqlalchemy import Connection

from birthmark_sma.authority.provisioning import enrolment
from birthmark_sma.authority.provisioning.idempotency import IDEMPOTENCY_PERIOD, StoredResponses
from birthmark_sma.authority.provisioning.issuance import (
    CandidateMaker,
    IssuedDevice,
    Provisioned,
    ProvisioningRequest,
)
from birthmark_sma.authority.provisioning.registration import find_conflict, register
from birthmark_sma.authority.server_metrics import PROVISIONINGS, Figures, Outcome
from birthmark_sma.errors import (
    BirthmarkError,
    ConflictError,
    DatabaseUnavailableError,
    PoolFullError,
    ShuttingDownError,
)
from birthmark_sma.runtime.cpu_affinity import unpin
from birthmark_sma.runtime.log_context import current_request
from birthmark_sma.storage.engine import Database
from birthmark_sma.storage.group_commit import GroupCommit

__all__ = ["Provisioned", "Provisioner", "ProvisioningRequest"]

_POOL_LIMIT = 1_000
_BATCH_LIMIT = 250
_SIGNERS_THAT_WAIT = 2
"""Signing threads beyond one a core, since each also waits for the database now and then."""


class Provisioner:
    """Provisions devices, from any thread or event loop.

    Certificates are signed in a few threads, as RSA-4096 takes milliseconds of a core; one writer
    registers what they have ready.
    """

    def __init__(
        self,
        database: Database,
        maker: CandidateMaker,
        first_answers: StoredResponses,
        figures: Figures | None = None,
    ) -> None:
        self._figures = figures or Figures()
        self._database = database
        self._maker = maker
        self._first_answers = first_answers
        self._under_way = 0  # owned by the event loop
        self._signers = ThreadPoolExecutor(
            (os.cpu_count() or 1) + _SIGNERS_THAT_WAIT,
            thread_name_prefix="signer",
            initializer=unpin if maker.takes_long else None,
        )
        self._writer: GroupCommit[IssuedDevice, Provisioned] = GroupCommit(
            database,
            self._register,
            name="provisioning-writer",
            pool_limit=_POOL_LIMIT,
            batch_limit=_BATCH_LIMIT,
            note=partial(self._figures.batch, PROVISIONINGS),
            note_failure=partial(self._figures.batch_failed, PROVISIONINGS),
        )

    async def provision(self, request: ProvisioningRequest) -> Provisioned:
        """Provision a device from a coroutine; otherwise as `provision_device`."""
        outcome = Outcome.FAILED
        self._under_way += 1
        try:
            if self._under_way > _POOL_LIMIT:
                raise PoolFullError
            registering: Future[Provisioned] = await asyncio.wrap_future(self._start(request))
            provisioned = await asyncio.wrap_future(registering)
            outcome = Outcome.PROVISIONED
            return provisioned
        except BirthmarkError as error:
            outcome = _outcome_of(error)
            raise
        finally:
            self._under_way -= 1
            self._figures.provisioned(outcome)

    def provision_device(self, request: ProvisioningRequest) -> Provisioned:
        """Provision a device and return what it needs, once that is durable.

        Raises PkiError for a key, CSR or serial that is refused, ConflictError where the serial,
        the public key or the NUC hash is registered, IdempotencyKeyReusedError, PoolFullError, and
        DatabaseUnavailableError. Sent again with the same idempotency key, it gives the first
        answer again.
        """
        return self._sign(request).result()

    def copy_figures(self) -> None:
        """Copy what the writer counts to where all processes see it."""
        self._figures.copy_writer(
            PROVISIONINGS, waiting=self._under_way, refused=self._writer.refused
        )

    def close(self) -> None:
        """Finish what is under way, then stop."""
        # In this order: a signing thread hands over to the writer before it ends.
        self._signers.shutdown()
        self._writer.close()

    def _start(self, request: ProvisioningRequest) -> "Future[Future[Provisioned]]":
        try:
            # With the context, which names the request to the log.
            return self._signers.submit(copy_context().run, self._sign, request)
        except RuntimeError:  # the executor's way of saying that it was shut down
            raise ShuttingDownError from None

    # --- in a signing thread

    def _sign(self, request: ProvisioningRequest) -> "Future[Provisioned]":
        """Prepare a device and hand it to the writer."""
        ready = self._prepare(request)
        if isinstance(ready, IssuedDevice):
            return self._writer.submit(ready, current_request())
        answered: Future[Provisioned] = Future()
        answered.set_result(ready)
        return answered

    def _prepare(self, request: ProvisioningRequest) -> Provisioned | IssuedDevice:
        """Check a request and sign its certificate, or return the first answer to it."""
        checked = self._maker.check(request)
        clock = self._database.clock
        since = clock.expired_before(IDEMPOTENCY_PERIOD)
        # A refusal that is certain already must not cost a signature. The writer decides the rest.
        with self._database.read() as connection:
            conflict = find_conflict(
                connection,
                request.device_serial,
                checked.public_key_fingerprint,
                checked.nuc_hash_index,
            )
            refusal = enrolment.find_refusal(connection, request)
            # In this order: where the first answer is what took the serial or used the key up,
            # that answer is there now.
            known = self._first_answers.find(connection, request, since)
            if known is None and conflict is not None and refusal is None:
                known = self._first_answers.find_of_lapsed_key(
                    connection, request, since, clock.now()
                )
        if known is not None:
            return known
        if certain := conflict or refusal:
            raise certain
        return self._maker.make(checked, clock.now())

    # --- in the writer thread

    def _register(
        self, transaction: Connection, candidates: Sequence[IssuedDevice]
    ) -> list[Provisioned | BirthmarkError]:
        return register(transaction, candidates, self._first_answers, self._database.clock)


def _outcome_of(error: BirthmarkError) -> Outcome:
    if isinstance(error, ConflictError):
        return Outcome.CONFLICT
    if isinstance(error, PoolFullError | ShuttingDownError):
        return Outcome.OVERLOADED
    if isinstance(error, DatabaseUnavailableError):
        return Outcome.UNAVAILABLE
    return Outcome.REFUSED
