"""Checks of what ends (CA, TLS, access keys, earlier table keys) and of the clocks.

`runner` calls these checks.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509

from birthmark_sma.authority.access import store as access_key_store
from birthmark_sma.authority.ca import store as ca_store
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
    "root": _Term(warning=730 * _DAY, critical=180 * _DAY),
    "intermediate": _Term(warning=365 * _DAY, critical=60 * _DAY),
}
_SUCCESSOR = {
    "root": "Plan a new root now: devices and verifiers need it before this one expires",
    "intermediate": "Plan a new one now: once it has expired, no device can be provisioned",
}
_TLS_TERM = _Term(warning=21 * _DAY, critical=3 * _DAY)
_OVERLAP_WARNING = timedelta(days=7)
_KEY_TERM = _Term(warning=14 * _DAY, critical=timedelta(0))
_DRIFT_WARNING = timedelta(seconds=5)
_DRIFT_CRITICAL = timedelta(minutes=1)
_AHEAD = timedelta(minutes=2)  # audit rows may be so far in the future of this machine's clock


def check_ca(database: Database, now: datetime) -> Iterator[Finding]:
    """Check when the root and intermediate certificates expire."""
    for name, certificate in _ca_certificates(database).items():
        end = certificate.not_valid_after_utc
        state = _CA_TERMS[name].judge(end, now)
        sentence = f"The certificate of the {name} {_validity(end, now)}"
        if state is not State.WELL:
            yield Finding(state, f"{name} CA", sentence, _SUCCESSOR[name])
        elif name == "intermediate" and end - now < profiles.DEVICE.validity:
            early = "A device certificate cannot be valid longer than this CA, so it expires early"
            yield info(f"{sentence}. {early}", name=f"{name} CA")
        else:
            yield ok(sentence, f"{name} CA")


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
    new_authority = max(
        (each.not_valid_before_utc for each in _ca_certificates(database).values()), default=now
    )
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


def _ca_certificates(database: Database) -> dict[str, x509.Certificate]:
    with database.read() as connection:
        found = {name: ca_store.find_ca(connection, name) for name in _CA_TERMS}
    return {name: ca.load() for name, ca in found.items() if ca is not None}


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
