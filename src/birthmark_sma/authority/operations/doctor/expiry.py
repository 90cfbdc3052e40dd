"""Checks of what ends (CA, TLS, access keys, earlier table keys) and of the clocks.

`runner` calls these checks.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509

from birthmark_sma.authority.access import store as access_key_store
from birthmark_sma.authority.ca import store as ca_store
from birthmark_sma.authority.ca.issuers import OpenCa
from birthmark_sma.authority.ca.store import CaRole, CaState
from birthmark_sma.authority.key_tables import holders
from birthmark_sma.authority.key_tables import store as key_table_store
from birthmark_sma.authority.operations.doctor.findings import (
    Finding,
    State,
    critical,
    info,
    ok,
    warning,
)
from birthmark_sma.authority.operations.statistics import SOON, count_expiring
from birthmark_sma.authority.renewal import orders
from birthmark_sma.config import Access, Settings
from birthmark_sma.counts import counted
from birthmark_sma.pki import profiles
from birthmark_sma.storage import health
from birthmark_sma.storage.engine import Database
from birthmark_sma.storage.outages.deadlines import LONG_SECONDS
from birthmark_sma.storage.portable_sql import database_time


@dataclass(frozen=True, slots=True)
class _Term:
    """The time before an expiry from which on it is a warning, and critical."""

    warning: timedelta
    critical: timedelta

    def judge(self, end: datetime, now: datetime) -> State:
        """Return the state, at `now`, of something that expires at `end`."""
        left = end - now
        if left <= self.critical:
            return State.CRITICAL
        return State.WARNING if left <= self.warning else State.WELL


_DAY = timedelta(days=1)
_CA_TERMS = {
    CaRole.ROOT: _Term(warning=730 * _DAY, critical=180 * _DAY),
    CaRole.INTERMEDIATE: _Term(warning=365 * _DAY, critical=60 * _DAY),
}
_SUCCESSOR = {
    CaRole.ROOT: "Type sma ca roll-root: devices and verifiers need the new root before this one"
    " expires",
    CaRole.INTERMEDIATE: "Type sma ca rotate: once it has expired, no device can be provisioned",
}
_NEW_ROOT_FIRST = "Type sma ca roll-root: it replaces this intermediate, too"
_MOST_COUNTED = 10_000
_TLS_TERM = _Term(warning=21 * _DAY, critical=3 * _DAY)
_OVERLAP_WARNING = timedelta(days=7)
_KEY_TERM = _Term(warning=14 * _DAY, critical=timedelta(0))
_DRIFT_WARNING = timedelta(seconds=5)
_DRIFT_CRITICAL = timedelta(minutes=1)
_AHEAD = timedelta(minutes=2)  # audit rows may be so far in the future of this machine's clock


def check_ca(database: Database, now: datetime) -> Iterator[Finding]:
    """Check when CA certificates expire, and whether devices need others than they have."""
    with database.read() as connection:
        cas = [OpenCa(each, each.load()) for each in ca_store.list_cas(connection)]
        devices = ca_store.count_devices_under(connection)
    prepared = [ca for ca in cas if ca.stored.state is CaState.PREPARED]
    root_ends_soon = any(
        ca.stored.role is CaRole.ROOT
        and ca.state_at(now) is CaState.ACTIVE
        and _CA_TERMS[CaRole.ROOT].judge(ca.certificate.not_valid_after_utc, now) is not State.WELL
        for ca in cas
    )
    for ca in cas:
        if ca.stored.role is CaRole.CROSS:
            continue  # it ends with the root that it certifies or with the one that signed it
        match ca.state_at(now):
            case CaState.ACTIVE:
                yield _check_active(ca, prepared, now, root_ends_soon=root_ends_soon)
            case CaState.COMPROMISED if number := devices.get(ca.name, 0):
                yield warning(
                    f"{counted(number, 'device has', 'devices have')} certificates under {ca.name},"
                    " which is compromised",
                    "Let them get new certificates: docs/operate/certificates.md",
                    f"{ca.name} CA",
                )
            case CaState.PREPARED | CaState.RETIRING as state:
                validity = _validity(ca.certificate.not_valid_after_utc, now)
                yield ok(f"{ca.name} is {state.value}. It {validity}", f"{ca.name} CA")


def _check_active(
    ca: OpenCa, prepared: Sequence[OpenCa], now: datetime, *, root_ends_soon: bool
) -> Finding:
    role = ca.stored.role
    end = ca.certificate.not_valid_after_utc
    state = _CA_TERMS[role].judge(end, now)
    sentence = f"The certificate of the {role} {_validity(end, now)}"
    name = f"{ca.name} CA"
    # An intermediate never outlives its root, and a new root brings an intermediate of its own.
    remedy = _NEW_ROOT_FIRST if root_ends_soon and role is CaRole.INTERMEDIATE else _SUCCESSOR[role]
    successors = [
        each
        for each in prepared
        if (each.stored.role, each.stored.issuer) == (role, ca.stored.issuer)
        and each.certificate.not_valid_after_utc > end
    ]
    if state is not State.WELL and successors:
        do = f"Type sma ca rotate --activate {successors[-1].name}"
        prepared_state = State.NOTED if state is State.WARNING else state
        return Finding(prepared_state, name, f"{sentence}. A successor is prepared", do)
    if state is not State.WELL:
        return Finding(state, name, sentence, remedy)
    if role is CaRole.INTERMEDIATE and end - now < profiles.DEVICE.validity:
        early = "A device certificate cannot be valid longer than this CA, so it expires early"
        return info(f"{sentence}. {early}", remedy, name=name)
    return ok(sentence, name)


def check_device_certificates(database: Database, now: datetime) -> Iterator[Finding]:
    """Warn of active and suspended devices whose certificate ends within 30 days or has ended.

    Those that ended more than 90 days ago are left out: such a device was given up.
    """
    with database.read() as connection:
        count = count_expiring(connection, now, _MOST_COUNTED)
    soon, over = count[SOON.days], count[0]
    if not soon and not over:
        yield ok("No certificate of a device in use ends within 30 days")
        return
    yield warning(
        f"Certificates of devices in use that end within 30 days: {_up_to(soon)}; that have expired"
        f" in the last 90 days: {_up_to(over)}",
        "To see them, type sma devices list --expiring-within 30d. They renew by themselves if they"
        " are on and can reach this server. If one cannot, re-enrol it: sma devices re-enrol",
    )


def check_renewal_orders(database: Database, now: datetime) -> Iterator[Finding]:
    """Warn of renewal orders that are over although devices have not renewed."""
    with database.read() as connection:
        late = [order for order in orders.list_open(connection) if order.ends_at <= now]
        left = {order.id: orders.count_stragglers(connection, order) for order in late}
    stragglers = {number: count for number, count in left.items() if count}
    if not stragglers:
        yield ok("No renewal order is over while devices have not renewed")
    for number, count in stragglers.items():
        told = f"{count:,} or more" if count >= orders.MOST_COUNTED else f"{count:,}"
        yield warning(
            f"Renewal order {number} is over, and devices have not renewed: {told}",
            "They may be off, or run a program that does not renew. For the numbers, type sma"
            f" renewals list. When you are done: sma renewals cancel {number}",
        )


def _up_to(count: int) -> str:
    return f"{count:,} or more" if count >= _MOST_COUNTED else f"{count:,}"


def check_overlaps(database: Database) -> Iterator[Finding]:
    """Warn if earlier keys of key tables soon end to be accepted while devices still have them."""
    with database.read(LONG_SECONDS) as connection:
        now = database_time(connection)
        still = [e for e in key_table_store.list_earlier(connection) if e.accepted_until > now]
        soon = [each for each in still if each.accepted_until - now <= _OVERLAP_WARNING]
        stragglers = holders.count_stragglers(connection, [each.table_id for each in soon])
    if stragglers:
        first = min(each.accepted_until for each in soon)
        yield warning(
            f"{counted(stragglers, 'device has', 'devices have')} earlier keys of key tables, and"
            f" tokens under such keys fail from {first:%Y-%m-%d %H:%M} UTC on",
            "To list the devices, type sma tables stragglers",
        )
    elif still:
        yield ok(
            f"Earlier keys of {counted(len(still), 'key table')} are accepted, the"
            f" last until {max(e.accepted_until for e in still):%Y-%m-%d %H:%M} UTC"
        )
    else:
        yield ok("Each key table has one key that is accepted")


def check_clock(database: Database, now: datetime) -> Iterator[Finding]:
    """Compare this machine's clock with the database's, the certificates and the audit log."""
    with database.read() as connection:
        before = datetime.now(UTC)
        theirs = database_time(connection)
        after = datetime.now(UTC)
        newest = health.newest_minute(connection)
        cas = ca_store.list_cas(connection)
    # The database's clock was read between `before` and `after`: only a time outside is a drift.
    drift = max(theirs - after, before - theirs, timedelta(0))
    ahead = "ahead of" if theirs < before else "behind"
    if drift > _DRIFT_WARNING:
        state = State.CRITICAL if drift > _DRIFT_CRITICAL else State.WARNING
        sentence = (
            f"This machine's clock is {drift.total_seconds():,.0f} seconds {ahead} the database's"
        )
        yield Finding(state, "clock", sentence, "Synchronise both clocks by NTP")
        return
    new_authority = max((each.load().not_valid_before_utc for each in cas), default=now)
    if now < new_authority:
        yield critical(
            f"This machine's clock says {now:%Y-%m-%d %H:%M} UTC, before the CA's certificates"
            " become valid",
            "Set the clock, and synchronise it by NTP",
        )
    elif newest is not None and newest > now + _AHEAD:
        yield warning(
            f"The newest audit rows are of {newest:%Y-%m-%d %H:%M} UTC, in the future: a clock is"
            " or was wrong",
            "Compare the clocks of all machines that serve, and synchronise them by NTP",
        )
    else:
        yield ok("The clock agrees with the database, the certificates and the audit log")


def check_tls(settings: Settings, now: datetime) -> Iterator[Finding]:
    """Check when the certificate for HTTPS and the CAs of client certificates expire."""
    if settings.tls_cert is not None:
        yield from _tls(settings.tls_cert, now, "Renew it, then send SIGHUP to the server")
    own = settings.data_dir / "tls-self" / "server.pem"
    if settings.tls_cert is None and own.exists():
        yield from _tls(own, now, "Restart sma serve --tls-self, which renews it")
    if settings.tls_client_ca is not None:
        yield from _tls(
            settings.tls_client_ca, now, "Callers need certificates of a new CA", "client CA"
        )


def check_access_keys(database: Database, settings: Settings, now: datetime) -> Iterator[Finding]:
    """Warn of access keys that expire within 14 days.

    If callers must show a key and none is valid, this is critical.
    """
    with database.read() as connection:
        good = [key for key in access_key_store.all_keys(connection) if key.is_good(now)]
    if not good and settings.resolved_access is Access.KEYS:
        yield critical(
            "Callers must have an access key, but no key is valid: no server starts",
            "Type sma keys create NAME --scope validate",
        )
        return
    ending = [
        key
        for key in good
        if key.expires_at is not None and _KEY_TERM.judge(key.expires_at, now) is not State.WELL
    ]
    if ending:
        first = min(ending, key=lambda key: key.expires_at or now)
        others = f", and {len(ending) - 1} more soon" if len(ending) > 1 else ""
        yield warning(
            f"The access key {first.name} expires on {first.expires_at:%Y-%m-%d %H:%M} UTC{others}",
            "Create a new one with sma keys create, and give it to the caller",
        )
    elif good:
        keys = counted(len(good), "access key is", "access keys are")
        yield ok(f"{keys} valid. None expires within two weeks")
    else:
        yield ok("There is no valid access key. On this address callers need none")


def _tls(file: Path, now: datetime, do: str, name: str = "TLS") -> Iterator[Finding]:
    try:
        shown = x509.load_pem_x509_certificates(file.read_bytes())
    except OSError as error:
        yield critical(f"{file} cannot be read: {error.strerror}", "Look at the file", name)
        return
    except ValueError:
        yield critical(f"{file} has no certificate", "Look at the file", name)
        return
    end = min(each.not_valid_after_utc for each in shown)
    state = _TLS_TERM.judge(end, now)
    sentence = f"{file} {_validity(end, now)}"
    yield ok(sentence, name) if state is State.WELL else Finding(state, name, sentence, do)


def _validity(end: datetime, now: datetime) -> str:
    if end <= now:
        return f"expired on {end:%Y-%m-%d}"
    return f"is valid until {end:%Y-%m-%d}, for {(end - now) / _DAY:,.0f} more days"
