"""Provision many devices in one transaction.

Called by the worker processes of `sma provision-batch` (`cli.batch.workers`), one chunk of requests
a call. This module must never start a thread, because its processes fork.
"""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from sqlalchemy import Connection

from birthmark_sma.authority.ca.store import CaRole
from birthmark_sma.authority.devices import store as device_store
from birthmark_sma.authority.provisioning.idempotency import StoredResponses
from birthmark_sma.authority.provisioning.issuance import (
    DeviceIssuer,
    IssuedDevice,
    Provisioned,
    ProvisioningRequest,
)
from birthmark_sma.authority.provisioning.registration import MOST_ATTEMPTS, OUTDATED, register
from birthmark_sma.errors import BirthmarkError, IssuerExpiredError
from birthmark_sma.storage.engine import Database


@dataclass(frozen=True, slots=True)
class RegisteredBefore:
    """The serial was already registered, under this provisioning id. Nothing was signed."""

    provisioning_id: str


Outcome: TypeAlias = Provisioned | RegisteredBefore | BirthmarkError
"""The result of one request."""


class BulkProvisioner:
    """Provisions requests in bulk. It starts no thread, so a process that uses it may fork.

    Call `dispose_connections` before a fork, so that each process opens its own connections.
    """

    roots: frozenset[str]
    """The authority's root certificates, PEM. They identify the authority."""

    def __init__(
        self, database: Database, maker: DeviceIssuer, first_answers: StoredResponses
    ) -> None:
        self.roots = frozenset(
            each.stored.certificate for each in maker.issuers.cas if each.stored.role is CaRole.ROOT
        )
        self._database = database
        self._maker = maker
        self._first_answers = first_answers

    def provision(
        self,
        requests: Sequence[ProvisioningRequest],
        keep: Callable[[Mapping[int, Provisioned]], None],
    ) -> list[Outcome]:
        """Provision requests in one transaction; return the outcome of each, in their order.

        `keep` is called before the commit with the answers, by index of the request. If `keep`
        makes them durable, no answer is lost when the process ends: an answer is valid if and only
        if its provisioning id is registered. It is called again, with other answers, if another
        intermediate became the active one or key tables were rotated meanwhile: then nothing of the
        first call was committed.

        Raises DatabaseUnavailableError, and then the last commit may have happened or not. Raises
        IssuerExpiredError, and KeyTablesRotatedError if key tables are rotated again and again.
        """
        for _ in range(MOST_ATTEMPTS - 1):
            with contextlib.suppress(*OUTDATED):
                return self._attempt(requests, keep)
        return self._attempt(requests, keep)

    def _attempt(
        self,
        requests: Sequence[ProvisioningRequest],
        keep: Callable[[Mapping[int, Provisioned]], None],
    ) -> list[Outcome]:
        """Provision requests under the active intermediate, with the newest keys of tables.

        Raises an error of OUTDATED, with nothing changed, if one is replaced before the commit.
        """
        with self._database.read() as connection:
            self._maker.follow_changes(connection)
        registered = self.registered([request.device_serial for request in requests])
        outcomes: dict[int, Outcome] = {}
        candidates: dict[int, IssuedDevice] = {}
        now = self._database.clock.now()
        for place, request in enumerate(requests):
            if (known := registered.get(request.device_serial)) is not None:
                outcomes[place] = RegisteredBefore(known)
                continue
            try:
                candidates[place] = self._maker.make(self._maker.check(request), now)
            except IssuerExpiredError:
                raise  # not an error of this request: all others would fail as well
            except BirthmarkError as error:
                outcomes[place] = error
        if candidates:
            # Before the commit: a device must never be registered whose answer is lost.
            keep({place: candidate.answer for place, candidate in candidates.items()})
            answers = self._register(list(candidates.values()))
            outcomes |= dict(zip(candidates, answers, strict=True))
        return [outcomes[place] for place in range(len(requests))]

    def registered(self, serials: Sequence[str]) -> dict[str, str]:
        """Return the provisioning ids, by serial, of the devices that are registered."""
        with self._database.read() as connection:
            return device_store.find_provisioning_ids(connection, serials)

    def registered_after_pending_commits(self, serials: Sequence[str]) -> dict[str, str]:
        """Return the same after all commits of `provision` that are under way have ended.

        A serial that is missing in the result will not be registered by an earlier commit. Raises
        DatabaseUnavailableError if a commit does not end within ten seconds.
        """

        def ask(transaction: Connection) -> dict[str, str]:
            device_store.await_registrations(transaction)
            return device_store.find_provisioning_ids(transaction, serials)

        return self._database.transact(ask)

    def dispose_connections(self) -> None:
        """Close every connection. The next query opens a new one."""
        self._database.close()

    def _register(self, candidates: Sequence[IssuedDevice]) -> list[Provisioned | BirthmarkError]:
        def work(transaction: Connection) -> list[Provisioned | BirthmarkError]:
            outcomes = register(transaction, candidates, self._first_answers, self._database.clock)
            for outcome in outcomes:
                if isinstance(outcome, OUTDATED):
                    raise outcome  # and none is registered
            return outcomes

        return self._database.transact(work)
