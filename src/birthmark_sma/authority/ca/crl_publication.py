"""Publish revocation lists: when something was revoked, and on a schedule.

A list is signed once and stored; every process serves the stored one (`authority.served_crls`).
Each process looks once a second, and whoever finds a list due makes it. It reads the newest number
before the entries, and its list is stored only if no other one was stored meanwhile: so lists never
go back, neither in number nor in what they list. Times are those of the database's clock.
"""

import logging
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from typing import NamedTuple

from cryptography import x509
from sqlalchemy import Connection

from birthmark_sma.authority.ca import crl_store
from birthmark_sma.authority.ca import store as ca_store
from birthmark_sma.authority.ca.crl_cache import ServedCrl, ServedCrls
from birthmark_sma.authority.ca.crl_store import (
    INTERMEDIATE,
    ROOT,
    CrlHead,
    PublishedCrl,
    RevocationState,
)
from birthmark_sma.authority.ca.store import Revocation
from birthmark_sma.errors import DatabaseUnavailableError, NotInitialisedError, ShuttingDownError
from birthmark_sma.pki.crl import LIFETIME, REASONS, RevokedCertificate, sign_crl
from birthmark_sma.pki.keys.ca_keys import Signer
from birthmark_sma.pki.profiles import CLOCK_SKEW, MAX_SERIAL_NUMBER_BITS
from birthmark_sma.runtime.background_task import BackgroundTask
from birthmark_sma.storage.advisory_locks import AdvisoryLock
from birthmark_sma.storage.dialects import database_time
from birthmark_sma.storage.engine import Database
from birthmark_sma.storage.exclusive_lock import only_one

_EVERY = timedelta(hours=6)
"""How often a list is published where nothing is revoked: four times in its lifetime."""
_MOST_AHEAD = timedelta(hours=2)
"""A list that is dated further ahead was made by a clock that was wrong. It is replaced, as no
verifier would believe it. A clock that is set back by an hour replaces nothing."""
_PAUSE_SECONDS = 0.005
"""After each 1,000 entries, so that who validates meanwhile hardly waits for the interpreter."""
_LONGEST_REST_SECONDS = 2.0
"""After a list a process rests as long as it took, up to this: revocations that go on and on must
not keep it busy with nothing else, and 100,000 entries must not be late."""
_EXPIRIES_A_LIST = 2_000

_log = logging.getLogger(__name__)


class CrlPublication(BackgroundTask):
    """Publishes the intermediate's lists, and keeps the newest at hand for those who serve it."""

    name = "crl-publication"
    every_seconds = 1.0

    def __init__(
        self, database: Database, issuer: x509.Certificate, signer: Signer, served: ServedCrls
    ) -> None:
        super().__init__()
        self._database = database
        self._issuer = issuer
        self._signer = signer
        self._served = served
        self._told = ""  # of an outage that lasts

    def work(self, now: datetime) -> None:  # noqa: ARG002  the database's clock counts
        """Look, and publish what is due. An outage must not mean a long pause."""
        began = time.monotonic()
        try:
            if publish_due_crl(self._database, self._issuer, self._signer, self._breathe):
                self._rest(began)
            self._served.newest(INTERMEDIATE)
        except ShuttingDownError:
            return
        except DatabaseUnavailableError as error:
            why = error.advice or str(error)
            if why != self._told:  # it looks every second, however long this lasts
                _log.warning("the revocation list waits for the database: %s", why)
            self._told = why
            self._rest(began)
        else:
            self._told = ""

    def _rest(self, began: float) -> None:
        self.pause(min(time.monotonic() - began, _LONGEST_REST_SECONDS))

    def _breathe(self) -> None:
        if self.pause(_PAUSE_SECONDS):
            raise ShuttingDownError


def publish_due_crl(
    database: Database,
    issuer: x509.Certificate,
    signer: Signer,
    breathe: Callable[[], None] = lambda: None,
    *,
    at_once: bool = False,
) -> bool:
    """Publish the intermediate's list if it is due, or `at_once`; say whether that was done.

    False also where another process is publishing, or was faster. `breathe` is called every few
    milliseconds of work, and may raise. Raises DatabaseUnavailableError.
    """
    with database.read() as connection:
        if not at_once and not _look(connection).is_due:
            return False
    with only_one(database, AdvisoryLock.CRL_PUBLICATION) as alone:
        return alone and _publish(database, issuer, signer, breathe, at_once=at_once)


def _publish(
    database: Database,
    issuer: x509.Certificate,
    signer: Signer,
    breathe: Callable[[], None],
    *,
    at_once: bool,
) -> bool:
    _note_expiries(database, breathe)
    with database.read() as connection:
        look = _look(connection)
        if not at_once and not look.is_due:
            return False
        head = look.next_head()
        leaving: list[str] = []
        der = sign_crl(
            _entries(connection, head.this_update, leaving, breathe),
            issuer=issuer,
            signer=signer,
            number=head.number,
            this_update=head.this_update,
            next_update=head.next_update,
        )
        with database.write() as transaction:
            crl = PublishedCrl(INTERMEDIATE, look.follows, head, der)
            stored = crl_store.add_crl(transaction, crl)
            if stored:
                crl_store.set_last_list(transaction, leaving, head.number)
        return stored


def publish_crls(
    database: Database, signer: Signer, root_signer: Signer | None
) -> dict[str, ServedCrl]:
    """Publish the intermediate's list, and the root's where its key is given.

    Return the newest list of each issuer that has one. Raises as the two others here do.
    """
    with database.read() as connection:
        intermediate = ca_store.find_ca(connection, INTERMEDIATE)
    if intermediate is None:
        raise NotInitialisedError
    issuer = x509.load_pem_x509_certificate(intermediate.certificate.encode())
    publish_due_crl(database, issuer, signer, at_once=True)
    if root_signer is not None:
        publish_root_crl(database, root_signer)
    served = ServedCrls(database)
    newest = {name: served.newest(name) for name in (ROOT, INTERMEDIATE)}
    return {name: crl for name, crl in newest.items() if crl is not None}


def publish_root_crl(database: Database, root_signer: Signer) -> None:
    """Publish the list of the root, which has revoked no intermediate.

    It is valid until the root's key is needed next, to sign the next intermediate. To be called
    wherever that key is at hand. Raises NotInitialisedError, ProfileViolationError where the key is
    another authority's, and DatabaseUnavailableError.
    """
    with database.write() as transaction:
        root, intermediate = (ca_store.find_ca(transaction, name) for name in (ROOT, INTERMEDIATE))
        if root is None or intermediate is None:
            raise NotInitialisedError
        add_root_crl(
            transaction,
            x509.load_pem_x509_certificate(root.certificate.encode()),
            root_signer,
            until=x509.load_pem_x509_certificate(
                intermediate.certificate.encode()
            ).not_valid_after_utc,
        )


def add_root_crl(
    transaction: Connection, root: x509.Certificate, root_signer: Signer, *, until: datetime
) -> None:
    """Sign and store the list of the root in a transaction of the caller's."""
    newest = crl_store.find_newest_head(transaction, ROOT)
    now = database_time(transaction)
    this_update = now if newest is None else max(now, newest.this_update)
    head = CrlHead(_next_number(newest, now), this_update, until, RevocationState(0, None))
    der = sign_crl(
        (),
        issuer=root,
        signer=root_signer,
        number=head.number,
        this_update=head.this_update,
        next_update=head.next_update,
    )
    follows = 0 if newest is None else newest.number
    crl_store.add_crl(transaction, PublishedCrl(ROOT, follows, head, der))


class _Look(NamedTuple):
    """The newest list, and what there is to list now. Read in this order."""

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
            or self.newest.state != self.state
            or self.newest.next_update <= self.now + LIFETIME - _EVERY
            or self._is_from_the_future
        )

    @property
    def _is_from_the_future(self) -> bool:
        return self.newest is not None and self.newest.next_update > (
            self.now + LIFETIME + _MOST_AHEAD
        )

    def next_head(self) -> CrlHead:
        """Return the head of the next list, dated back for slow clocks as far as it can be."""
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


def _look(connection: Connection) -> _Look:
    return _Look(
        crl_store.find_newest_head(connection, INTERMEDIATE),
        crl_store.read_state(connection),
        database_time(connection),
    )


def _next_number(newest: CrlHead | None, now: datetime) -> int:
    """Return the number of the next list: larger than the one before, whatever the clock says.

    Milliseconds rather than 1, 2, 3: a database that was restored from a backup does not use a
    number again.
    """
    by_clock = int(now.timestamp() * 1_000)
    return by_clock if newest is None else max(by_clock, newest.number + 1)


def _entries(
    connection: Connection,
    this_update: datetime,
    leaving: list[str],
    breathe: Callable[[], None],
) -> Iterator[RevokedCertificate]:
    """Yield the entries of a list, and note the certificates that need not be on the next.

    RFC 5280, section 3.3: an entry stays until it was on a list that was issued after its
    certificate expired.
    """
    for some in crl_store.iterate_listed(connection, this_update):
        for revocation, expires_at in some:
            entry = _entry(revocation)
            if entry is None:
                continue
            if expires_at is not None and expires_at < this_update:
                leaving.append(revocation.certificate_serial)
            yield entry
        breathe()


def _entry(revocation: Revocation) -> RevokedCertificate | None:
    """Return the entry of a revocation. One row that makes no sense must not spoil the list."""
    try:
        serial = int(revocation.certificate_serial, 16)
    except ValueError:
        serial = 0
    if serial <= 0 or serial.bit_length() > MAX_SERIAL_NUMBER_BITS:
        _log.error("a revoked certificate's serial is no number that one can have: not on the CRL")
        return None
    reason = revocation.revocation_reason
    return RevokedCertificate(
        serial, revocation.revoked_at, reason if reason in REASONS else "unspecified"
    )


def _note_expiries(database: Database, breathe: Callable[[], None]) -> None:
    """Note when revoked certificates expire that the register knows, some of them a list."""
    with database.read() as connection:
        found = crl_store.find_without_expiry(connection, limit=_EXPIRIES_A_LIST)
    expiries: list[tuple[str, datetime]] = []
    for serial, pem in found:
        expiries.append((serial, x509.load_pem_x509_certificate(pem.encode()).not_valid_after_utc))
        if len(expiries) % 100 == 0:
            breathe()
    if expiries:
        with database.write() as transaction:
            crl_store.set_expiries(transaction, expiries)
