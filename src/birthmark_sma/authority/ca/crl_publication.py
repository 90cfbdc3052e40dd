"""Publish certificate revocation lists (CRLs): after each revocation, and every six hours.

Each issuer has its own CRL, with the revocations of its certificates. A CRL is signed once and
stored; all processes serve the stored one (`crl_store`). Each process checks once a second whether
a CRL is due, and the first one that finds it due signs it. `sma ca` and the rotation of secrets
publish as well. Nothing is signed with the key of a compromised intermediate.

CRLs must never go backwards, neither in number nor in entries. A process therefore reads the newest
number before the entries, and its CRL is stored only if no other one was stored in between. All
times are of the database's clock.
"""

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime, timedelta
from typing import NamedTuple

from cryptography import x509
from sqlalchemy import Connection

from birthmark_sma.authority.acts import trail
from birthmark_sma.authority.acts.actor import ActKind, Actor
from birthmark_sma.authority.acts.trail import Facts
from birthmark_sma.authority.ca import crl_store
from birthmark_sma.authority.ca import store as ca_store
from birthmark_sma.authority.ca.crl_store import (
    CrlHead,
    PublishedCrl,
    RevocationState,
    ServedCrl,
    ServedCrls,
)
from birthmark_sma.authority.ca.issuers import Issuer, OpenIssuers
from birthmark_sma.authority.ca.store import CaRole, CaState, Revocation, StoredCa
from birthmark_sma.errors import DatabaseUnavailableError, ProfileViolationError, ShuttingDownError
from birthmark_sma.pki.crl import HOLD, LIFETIME, REASONS, RevokedCertificate, sign_crl
from birthmark_sma.pki.keys.ca_keys import Signer
from birthmark_sma.pki.profiles import CLOCK_SKEW, MAX_SERIAL_NUMBER_BITS
from birthmark_sma.runtime.background_task import BackgroundTask
from birthmark_sma.storage.engine import Database
from birthmark_sma.storage.locks import AdvisoryLock, only_one
from birthmark_sma.storage.portable_sql import database_time

_EVERY = timedelta(hours=6)
"""The interval of CRLs if nothing is revoked. It is a quarter of a CRL's lifetime of a day."""
_MOST_AHEAD = timedelta(hours=2)
"""A CRL that is dated further in the future was made with a wrong clock. It is replaced, because
verifiers would reject it. A clock that is set back by an hour replaces nothing."""
_PAUSE_SECONDS = 0.005
"""The pause after each 1,000 entries, so that validation threads hardly wait for the interpreter's
lock."""
_LONGEST_REST_SECONDS = 2.0
"""After a CRL a process pauses for as long as the CRL took, up to this. A steady stream of
revocations must not keep it busy all the time, and a CRL of 100,000 entries must not be late."""

_log = logging.getLogger(__name__)


class CrlPublication(BackgroundTask):
    """Publishes the CRLs of the intermediates when they are due, and keeps the cache up to date.

    Runs in every server process, once a second.
    """

    name = "crl-publication"
    every_seconds = 1.0

    def __init__(self, database: Database, issuers: OpenIssuers, served: ServedCrls) -> None:
        super().__init__()
        self._database = database
        self._issuers = issuers
        self._served = served
        self._told = ""  # the outage that the log has already; empty for none

    def work(self, now: datetime) -> None:  # noqa: ARG002  the database's clock counts
        """Publish the CRLs that are due.

        Catch DatabaseUnavailableError: `BackgroundTask` would wait for 60 seconds after it, and a
        revocation would be published that much later.
        """
        began = time.monotonic()
        try:
            for issuer in self._issuers.signing():
                if publish_due_crl(self._database, issuer, self._let_others_run):
                    self._rest(began)
                # So that `last_known` has this CRL if the database becomes unavailable.
                self._served.newest(issuer.name)
        except ShuttingDownError:
            return
        except DatabaseUnavailableError as error:
            why = error.advice or str(error)
            if why != self._told:  # once for each outage, not once a second
                _log.warning("the revocation list waits for the database: %s", why)
            self._told = why
            self._rest(began)
        else:
            self._told = ""

    def _rest(self, began: float) -> None:
        self.pause(min(time.monotonic() - began, _LONGEST_REST_SECONDS))

    def _let_others_run(self) -> None:
        if self.pause(_PAUSE_SECONDS):
            raise ShuttingDownError


def publish_due_crl(
    database: Database,
    issuer: Issuer,
    let_others_run: Callable[[], None] = lambda: None,
    *,
    at_once: bool = False,
) -> bool:
    """Publish the CRL of an intermediate if it is due, or in any case if `at_once`.

    Return True if it was stored. Return False if it is not due, or if another process is publishing
    or was faster. `let_others_run` is called after every few milliseconds of work, and may raise to
    stop it. Raises DatabaseUnavailableError.
    """
    with database.read() as connection:
        if not at_once and not _read_snapshot(connection, issuer.name).is_due:
            return False
    # The lock only saves work. `crl_store.add_crl` decides which of two CRLs counts.
    with only_one(database, AdvisoryLock.CRL_PUBLICATION) as alone:
        return alone and _publish(database, issuer, let_others_run, at_once=at_once)


def _publish(
    database: Database,
    issuer: Issuer,
    let_others_run: Callable[[], None],
    *,
    at_once: bool,
) -> bool:
    with database.read() as connection:
        # Again, under the lock: another process may have published since the first check.
        snapshot = _read_snapshot(connection, issuer.name)
        if not at_once and not snapshot.is_due:
            return False
        head = snapshot.next_head()
        leaving: list[str] = []
        entries = _entries(connection, issuer.name, head.this_update, leaving, let_others_run)
        der = _sign(entries, issuer.certificate, issuer.signer, head)

        def store(transaction: Connection) -> bool:
            crl = PublishedCrl(issuer.name, snapshot.follows, head, der)
            stored = crl_store.add_crl(transaction, crl)
            if stored:
                # In the same transaction: an entry may leave only if it is on a stored CRL.
                crl_store.set_last_list(transaction, leaving, head.number)
            return stored

        return database.transact(store)


def publish_crls(
    database: Database, issuers: OpenIssuers, root_signers: Iterable[Signer], actor: Actor
) -> dict[str, ServedCrl]:
    """Publish the CRLs of the intermediates, and those of the roots whose keys are given.

    The last transaction records the act. Return the newest CRL of each CA that has one, by its
    name. Raises the errors of `publish_due_crl` and those of `publish_root_crls`.
    """
    signers = tuple(root_signers)
    with database.read() as connection:
        before = _describe_newest(connection, issuers)
    for issuer in issuers.signing():
        publish_due_crl(database, issuer, at_once=True)

    def finish(transaction: Connection) -> None:
        _add_root_crls(transaction, signers)
        changed = trail.compare(before, _describe_newest(transaction, issuers))
        trail.record(transaction, actor, ActKind.CA_PUBLISH_CRL, changed)

    database.transact(finish)
    served = ServedCrls(database)
    newest = {ca.name: served.newest(ca.name) for ca in issuers.cas}
    return {name: crl for name, crl in newest.items() if crl is not None}


def publish_root_crls(database: Database, root_signers: Iterable[Signer]) -> None:
    """Publish the CRLs of the roots whose keys are given.

    Call it in each command that has loaded such a key. Raises ProfileViolationError if a key
    belongs to another authority, and DatabaseUnavailableError.
    """
    signers = tuple(root_signers)
    database.transact(lambda transaction: _add_root_crls(transaction, signers))


def _add_root_crls(transaction: Connection, signers: Iterable[Signer]) -> None:
    for signer in signers:
        add_root_crl(transaction, signer)


def _describe_newest(connection: Connection, issuers: OpenIssuers) -> dict[str, Facts]:
    """Return the number of the newest CRL of each CA that has one, by the CA's name."""
    heads = {ca.name: crl_store.find_newest_head(connection, ca.name) for ca in issuers.cas}
    return {name: {"crl_number": head.number} for name, head in heads.items() if head is not None}


def add_root_crl(transaction: Connection, root_signer: Signer) -> None:
    """Sign and store the CRL of the root that has this key, in the caller's transaction.

    It lists the compromised intermediates of the root. It is valid until the last certificate that
    the root has signed ends, because the root's key may not be needed before. Raises
    ProfileViolationError if the key belongs to no root of this authority.
    """
    cas = ca_store.list_cas(transaction)
    root = find_root_of_key(cas, root_signer)
    signed = [each for each in cas if each.issuer == root.name and each.role is not CaRole.ROOT]
    until = max((_end(each) for each in signed), default=_end(root))
    newest = crl_store.find_newest_head(transaction, root.name)
    now = database_time(transaction)
    this_update = now if newest is None else max(now, newest.this_update)
    revoked = [_revoked_ca(each, now) for each in signed if each.state is CaState.COMPROMISED]
    newest_at = max((each.revoked_at for each in revoked), default=None)
    head = CrlHead(
        _next_number(newest, now), this_update, until, RevocationState(len(revoked), newest_at, 0)
    )
    follows = 0 if newest is None else newest.number
    der = _sign(revoked, root.load(), root_signer, head)
    crl_store.add_crl(transaction, PublishedCrl(root.name, follows, head, der))


def find_root_of_key(cas: Iterable[StoredCa], root_signer: Signer) -> StoredCa:
    """Return the root that has this key.

    Raises ProfileViolationError if the key belongs to no root of this authority.
    """
    for each in cas:
        if each.role is CaRole.ROOT and each.load().public_key() == root_signer.public_key:
            return each
    raise ProfileViolationError("The root's key belongs to another authority.")


def _end(ca: StoredCa) -> datetime:
    return ca.load().not_valid_after_utc


def _revoked_ca(ca: StoredCa, now: datetime) -> RevokedCertificate:
    return RevokedCertificate(
        ca.load().serial_number, ca.state_changed_at or now, "key_compromise", ca.invalid_since
    )


def _sign(
    entries: Iterable[RevokedCertificate], issuer: x509.Certificate, signer: Signer, head: CrlHead
) -> bytes:
    return sign_crl(
        entries,
        issuer=issuer,
        signer=signer,
        number=head.number,
        this_update=head.this_update,
        next_update=head.next_update,
    )


class _Snapshot(NamedTuple):
    """The newest CRL, the revocations to list, and the time. They must be read in this order."""

    newest: CrlHead | None
    state: RevocationState
    now: datetime

    @property
    def follows(self) -> int:
        return 0 if self.newest is None else self.newest.number

    @property
    def is_due(self) -> bool:
        return (
            self.newest is None
            or self.newest.state != self.state  # revocations were added, changed or ended since
            or self.newest.next_update <= self.now + LIFETIME - _EVERY  # six hours old
            or self._is_from_the_future
        )

    @property
    def _is_from_the_future(self) -> bool:
        return self.newest is not None and self.newest.next_update > (
            self.now + LIFETIME + _MOST_AHEAD
        )

    def next_head(self) -> CrlHead:
        """Return the head of the next CRL.

        `this_update` is up to an hour in the past, for verifiers with slow clocks. It is not before
        that of the CRL before it, nor before the newest revocation, as far as that is in the past.
        """
        floor, latest = self.now - CLOCK_SKEW, self.now
        if self.newest is not None and not self._is_from_the_future:
            floor, latest = (
                max(floor, self.newest.this_update),
                max(latest, self.newest.this_update),
            )
        if self.state.newest is not None:
            floor = max(floor, min(self.state.newest, latest))
        number = _next_number(self.newest, self.now)
        return CrlHead(number, floor, self.now + LIFETIME, self.state)


def _read_snapshot(connection: Connection, issuer: str) -> _Snapshot:
    # The newest head first. If another process stores a CRL after this line, this process's CRL
    # follows the wrong number and is refused; so no CRL is stored that lacks entries of the one
    # before it.
    return _Snapshot(
        crl_store.find_newest_head(connection, issuer),
        crl_store.read_state(connection, issuer),
        database_time(connection),
    )


def _next_number(newest: CrlHead | None, now: datetime) -> int:
    """Return the CRL number of the next list: the time in ms since 1970, or the last number plus 1.

    It always grows (RFC 5280, section 5.2.3), even if the clock goes back. It is the time, so that
    an authority that was restored from a backup does not use a number for the second time.
    """
    by_clock = int(now.timestamp() * 1_000)
    return by_clock if newest is None else max(by_clock, newest.number + 1)


def _entries(
    connection: Connection,
    issuer: str,
    this_update: datetime,
    leaving: list[str],
    let_others_run: Callable[[], None],
) -> Iterator[RevokedCertificate]:
    """Yield the entries of a CRL. Append the serials that may leave after this CRL to `leaving`.

    RFC 5280, section 3.3: an entry must stay until it has been on a CRL that was issued after the
    certificate expired.
    """
    for some in crl_store.iterate_listed(connection, issuer, this_update):
        for revocation, expires_at in some:
            entry = _entry(revocation)
            if entry is None:
                continue
            if expires_at is not None and expires_at < this_update:
                leaving.append(revocation.certificate_serial)
            yield entry
        let_others_run()


def _entry(revocation: Revocation) -> RevokedCertificate | None:
    """Return the entry of a revocation, or None for a row without a valid serial number.

    Such a row is logged and left out: otherwise it would prevent every CRL.
    """
    try:
        serial = int(revocation.certificate_serial, 16)
    except ValueError:
        serial = 0
    if serial <= 0 or serial.bit_length() > MAX_SERIAL_NUMBER_BITS:
        _log.error("a revoked certificate has an invalid serial number, and is left out of the CRL")
        return None
    reason = revocation.revocation_reason
    return RevokedCertificate(
        serial,
        revocation.revoked_at,
        reason if reason in REASONS or reason == HOLD else "unspecified",
        revocation.invalid_since,
    )
