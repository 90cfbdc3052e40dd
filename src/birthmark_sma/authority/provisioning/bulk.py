"""Provision many devices in one transaction, for whoever brings them by the thousand."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from birthmark_sma.authority.devices import store as device_store
from birthmark_sma.authority.provisioning.idempotency import StoredResponses
from birthmark_sma.authority.provisioning.issuance import (
    CandidateMaker,
    IssuedDevice,
    Provisioned,
    ProvisioningRequest,
)
from birthmark_sma.authority.provisioning.registration import register
from birthmark_sma.errors import BirthmarkError, DatabaseUnavailableError, IssuerExpiredError
from birthmark_sma.storage.engine import Database


@dataclass(frozen=True, slots=True)
class RegisteredBefore:
    """The serial was registered already, under this provisioning id; nothing was signed."""

    provisioning_id: str


Outcome: TypeAlias = Provisioned | RegisteredBefore | BirthmarkError
"""What became of one request."""


class BulkProvisioner:
    """Provisions requests in bulk. It starts no thread, so that a process that has it may fork.

    Call `dispose_connections` before a fork: each process then opens connections of its own.
    """

    root: str
    """The authority's root certificate, PEM: what tells it from every other."""

    def __init__(
        self, database: Database, maker: CandidateMaker, first_answers: StoredResponses, root: str
    ) -> None:
        self.root = root
        self._database = database
        self._maker = maker
        self._first_answers = first_answers

    def provision(
        self,
        requests: Sequence[ProvisioningRequest],
        keep: Callable[[Mapping[int, Provisioned]], None],
    ) -> list[Outcome]:
        """Provision requests in one transaction; return what became of each, in their order.

        `keep` gets what would be answered, by the request's place, before any of it is committed.
        Where it makes that durable, an answer can be found again whenever the process ends: it
        counts if and only if its provisioning id is registered. Raises DatabaseUnavailableError,
        with nothing known of the last commit, and IssuerExpiredError.
        """
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
                raise  # no fault of this request: all others would meet it
            except BirthmarkError as error:
                outcomes[place] = error
        if candidates:
            keep({place: candidate.answer for place, candidate in candidates.items()})
            answers = self._register(list(candidates.values()))
            outcomes |= dict(zip(candidates, answers, strict=True))
        return [outcomes[place] for place in range(len(requests))]

    def registered(self, serials: Sequence[str]) -> dict[str, str]:
        """Return the provisioning ids of those of these devices that are registered, by serial."""
        with self._database.read() as connection:
            return device_store.find_provisioning_ids(connection, serials)

    def registered_after_pending_commits(self, serials: Sequence[str]) -> dict[str, str]:
        """Return the same once no commit is under way, so that who is not in it never will be.

        Raises DatabaseUnavailableError where a commit does not end.
        """
        with self._database.write() as transaction:
            device_store.await_registrations(transaction)
            return device_store.find_provisioning_ids(transaction, serials)

    def dispose_connections(self) -> None:
        """Close every connection; the next question opens another."""
        self._database.close()

    def _register(self, candidates: Sequence[IssuedDevice]) -> list[Provisioned | BirthmarkError]:
        """Register in one transaction; try again once where nothing can have been committed.

        The second try is for deadlocks between programs, and for a connection that went stale.
        """
        committing = False
        try:
            with self._database.write() as transaction:
                answers = register(
                    transaction, candidates, self._first_answers, self._database.clock
                )
                committing = True
        except DatabaseUnavailableError:
            if committing:
                raise
            with self._database.write() as transaction:
                answers = register(
                    transaction, candidates, self._first_answers, self._database.clock
                )
        return answers
