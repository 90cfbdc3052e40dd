"""Publication of revocation lists: complete, in order, on time, whatever clocks and others do."""

import threading
from collections.abc import Callable
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path

import pytest
from cryptography import x509

from birthmark_sma.authority.authority import Authority
from birthmark_sma.authority.ca import crl_publication, crl_store
from birthmark_sma.authority.ca.ceremony import load_root_signers
from birthmark_sma.authority.ca.crl_publication import (
    CrlPublication,
    publish_due_crl,
    publish_root_crls,
)
from birthmark_sma.authority.ca.crl_store import RevocationState
from birthmark_sma.authority.ca.store import Revocation
from birthmark_sma.authority.devices import states
from birthmark_sma.authority.devices.revocation import change_devices
from birthmark_sma.config import Settings
from birthmark_sma.errors import DatabaseUnavailableError, ShuttingDownError
from birthmark_sma.storage.portable_sql import database_time
from tests.support.authorities import execute, new_camera, opened, rows_of
from tests.support.devices.actors import ACTOR
from tests.support.devices.acts import (
    reinstate_device,
    retire_device,
    revoke_device,
    suspend_device,
)
from tests.support.pki.certificate_verifiers import lint_crl, openssl_accepts_crl
from tests.support.pki.crls import number_of
from tests.support.pki.revocations import add_revocation

HOUR, DAY = timedelta(hours=1), timedelta(days=1)


def publish(
    authority: Authority, breathe: Callable[[], None] = lambda: None, *, at_once: bool = False
) -> bool:
    """Publish the list if it is due."""
    return publish_due_crl(authority.database, authority.issuer, breathe, at_once=at_once)


def served(authority: Authority, issuer: str = "intermediate") -> x509.CertificateRevocationList:
    """Return the list that this process serves."""
    crl = authority.served_crls.newest(issuer)
    assert crl is not None
    signed = x509.load_der_x509_crl(crl.der)
    assert number_of(signed) == crl.number
    return signed


def revoked(authority: Authority, serial: str) -> int:
    """Provision and revoke a device; return the serial number of its certificate."""
    new_camera(authority, serial)
    revoke_device(authority.database, serial, "key_compromise")
    query = "SELECT certificate_serial FROM registered_devices WHERE device_serial = :serial"
    return int(rows_of(authority.database, query, serial=serial)[0][0], 16)


def revoke_unknown(authority: Authority, number: int, at: datetime | None = None) -> int:
    """Revoke a certificate that the register does not know."""
    with authority.database.write() as transaction:
        add_revocation(
            transaction,
            Revocation(
                f"{number:x}", "lost", at or database_time(transaction), "cessation_of_operation"
            ),
        )
    return number


def listed(crl: x509.CertificateRevocationList) -> set[int]:
    """Return the serial numbers on a list."""
    return {entry.serial_number for entry in crl}


class Clock:
    """The database's clock, ahead of the true one by `offset`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.offset = timedelta(0)
        monkeypatch.setattr(
            crl_publication,
            "database_time",
            lambda connection: database_time(connection) + self.offset,
        )


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """A clock that a test sets."""
    return Clock(monkeypatch)


# --- when a list is published


def test_a_hold_is_listed_until_it_ends(authority: Authority) -> None:
    """The next list is without the entry. Only lists of changes say removeFromCRL."""
    new_camera(authority, "camera")
    suspend_device(authority.database, "camera")
    assert publish(authority)
    before = served(authority)
    [entry] = before
    reason = entry.extensions.get_extension_for_class(x509.CRLReason).value.reason
    assert reason is x509.ReasonFlags.certificate_hold
    reinstate_device(authority.database, "camera")
    assert publish(authority)
    after = served(authority)
    assert list(after) == []
    assert number_of(after) > number_of(before)
    assert not publish(authority)


def test_a_list_is_due_though_number_and_time_are_the_same(authority: Authority) -> None:
    """One suspension ends, another begins at the same time: the generation tells."""
    for serial in ("one", "two"):
        new_camera(authority, serial)
    suspend_device(authority.database, "one")
    assert publish(authority)
    reinstate_device(authority.database, "one")
    suspend_device(authority.database, "two")
    [(at,)] = rows_of(authority.database, "SELECT max(newest_revocation) FROM published_crls")
    execute(authority.database, "UPDATE revoked_certificates SET revoked_at = :at", at=at)
    with authority.database.read() as connection:
        newest = crl_store.find_newest_head(connection, "intermediate")
        state = crl_store.read_state(connection, "intermediate")
    assert newest is not None
    assert state[:2] == newest.state[:2]
    assert publish(authority)
    assert not publish(authority)
    query = "SELECT certificate_serial FROM registered_devices WHERE device_serial = 'two'"
    assert listed(served(authority)) == {int(rows_of(authority.database, query)[0][0], 16)}


def test_a_changed_reason_makes_a_list_due(authority: Authority) -> None:
    """Compromised since T, of a device that was retired."""
    new_camera(authority, "camera")
    retire_device(authority.database, "camera")
    assert publish(authority)
    since = datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=UTC)
    change = states.revoke(ACTOR, "key_compromise", since)
    change_devices(authority.database, ["camera"], change)
    assert publish(authority)
    [entry] = served(authority)
    reason = entry.extensions.get_extension_for_class(x509.CRLReason).value.reason
    assert reason is x509.ReasonFlags.key_compromise
    given = entry.extensions.get_extension_for_class(x509.InvalidityDate).value
    assert given.invalidity_date_utc == since.replace(microsecond=0)


def test_a_list_is_published_when_something_was_revoked(authority: Authority) -> None:
    """Once for each change, and not again without one."""
    assert publish(authority)
    assert listed(served(authority)) == set()
    assert not publish(authority)
    serials = {revoked(authority, "one"), revoked(authority, "two")}
    assert publish(authority)
    assert listed(served(authority)) == serials
    assert not publish(authority)


def test_a_list_is_published_on_a_schedule(authority: Authority, clock: Clock) -> None:
    """Every six hours, long before the one before has run out."""
    publish(authority)
    first = served(authority)
    clock.offset = 6 * HOUR - timedelta(minutes=1)
    assert not publish(authority)
    clock.offset = 6 * HOUR
    assert publish(authority)
    second = served(authority)
    assert first.next_update_utc is not None
    assert second.next_update_utc is not None
    assert second.next_update_utc - first.next_update_utc >= 6 * HOUR - timedelta(seconds=1)
    assert number_of(second) > number_of(first)


def test_every_process_serves_the_same_list(authority: Authority, settings: Settings) -> None:
    """Threat 44: byte for byte, and the newest as soon as there is one."""
    with opened(settings) as other:
        for number in range(5):
            revoke_unknown(authority, number + 1)
            assert publish((authority, other)[number % 2])
            assert authority.served_crls.newest("intermediate") == other.served_crls.newest(
                "intermediate"
            )


# --- the order of lists


def test_a_list_that_was_overtaken_is_never_served(
    authority: Authority, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Threat 44: a process that has read fewer entries stores no list after another one has.

    Not even where it has lost the lock, with its connection, and does not know it.
    """
    monkeypatch.setattr(crl_publication, "only_one", lambda *_: nullcontext(enter_result=True))
    outcomes: dict[str, bool] = {}
    revoke_unknown(authority, 1)
    with opened(settings) as other:

        def meanwhile() -> None:
            if "faster" not in outcomes:
                revoke_unknown(other, 2)
                outcomes["faster"] = publish(other)

        outcomes["slower"] = publish(authority, meanwhile)
        assert outcomes == {"faster": True, "slower": False}
        numbers = [number_of(served(authority))]
        publish(other)
        numbers.append(number_of(served(authority)))
    assert listed(served(authority)) == {1, 2}
    assert numbers == sorted(numbers)


def test_one_process_at_a_time_makes_a_list(authority: Authority, settings: Settings) -> None:
    """Threat 44: others leave it at that, and look again a second later."""
    outcomes: list[bool] = []
    revoke_unknown(authority, 1)
    with opened(settings) as other:
        assert publish(authority, lambda: outcomes.append(publish(other)))
    assert outcomes == [False]


def test_lists_only_grow_while_many_revoke_and_publish(
    authority: Authority, settings: Settings
) -> None:
    """Threat 44: each list has a higher number than every earlier one, and all of its entries."""
    seen: list[tuple[int, set[int]]] = []
    stop = threading.Event()
    with opened(settings) as other:

        def publish_on(program: Authority) -> None:
            while not stop.is_set():
                publish(program)

        threads = [
            threading.Thread(target=publish_on, args=[each]) for each in (authority, other) * 2
        ]
        for thread in threads:
            thread.start()
        for number in range(1, 61):
            revoke_unknown((authority, other)[number % 2], number)
            program = (authority, other)[number // 2 % 2]
            if program.served_crls.newest("intermediate") is not None:
                crl = served(program)
                seen.append((number_of(crl), listed(crl)))
        stop.set()
        for thread in threads:
            thread.join(60)
    publish(authority)
    last = served(authority)
    seen.append((number_of(last), listed(last)))
    assert listed(last) == set(range(1, 61))
    for (number, entries), (next_number, next_entries) in pairwise(seen):
        assert number <= next_number
        assert entries <= next_entries


def test_a_clock_that_is_set_back_changes_nothing(authority: Authority, clock: Clock) -> None:
    """Threat 44: number and date go on, and no entry is newer than its list."""
    numbers: list[int] = []
    dates: list[datetime] = []
    for hours in (0, -1, -0.5, 0, -1):
        clock.offset = hours * HOUR
        revoke_unknown(authority, len(numbers) + 1)
        assert publish(authority)
        assert not publish(authority)
        crl = served(authority)
        numbers.append(number_of(crl))
        dates.append(crl.last_update_utc)
        assert all(entry.revocation_date_utc <= crl.last_update_utc for entry in crl)
        assert crl.last_update_utc <= datetime.now(UTC)
    assert numbers == sorted(set(numbers))
    assert dates == sorted(dates)


def test_a_list_from_the_future_is_replaced(authority: Authority, clock: Clock) -> None:
    """Threat 44: what a clock made that was a day ahead would be believed by nobody for a day."""
    clock.offset = 25 * HOUR
    publish(authority)
    wrong = served(authority)
    clock.offset = timedelta(0)
    assert publish(authority)
    assert not publish(authority)
    right = served(authority)
    assert wrong.last_update_utc > datetime.now(UTC) + 20 * HOUR
    assert right.last_update_utc <= datetime.now(UTC)
    assert number_of(right) > number_of(wrong)


def test_a_revocation_from_the_future_spoils_nothing(authority: Authority) -> None:
    """Threat 44: it is listed now, and the list can be relied on now."""
    revoke_unknown(authority, 7, datetime.now(UTC) + 365 * DAY)
    publish(authority)
    crl = served(authority)
    assert [entry.revocation_date_utc for entry in crl] == [crl.last_update_utc]
    assert crl.last_update_utc <= datetime.now(UTC)


def test_the_date_of_a_list(authority: Authority) -> None:
    """It is that of its newest entry, or up to an hour back, for verifiers with slow clocks."""
    publish(authority)
    assert timedelta(minutes=59) < datetime.now(UTC) - served(authority).last_update_utc < 2 * HOUR
    revoked(authority, "camera")
    publish(authority)
    crl = served(authority)
    assert [entry.revocation_date_utc for entry in crl] == [crl.last_update_utc]
    assert datetime.now(UTC) - crl.last_update_utc < timedelta(minutes=1)


def test_a_restored_database_uses_no_number_again(authority: Authority) -> None:
    """Threat 44: after a restore, lists go on above the numbers that were served meanwhile."""
    publish(authority)
    before = number_of(served(authority))
    execute(authority.database, "DELETE FROM published_crls WHERE issuer = 'intermediate'")
    threading.Event().wait(0.005)
    publish(authority)
    assert number_of(served(authority)) > before


# --- entries


def test_an_entry_leaves_one_list_after_its_certificate_expired(
    authority: Authority, clock: Clock
) -> None:
    """RFC 5280, section 3.3; one that the register does not know stays for ever."""
    unknown = revoke_unknown(authority, 77)
    device = revoked(authority, "camera")
    assert publish(authority)
    clock.offset = 729 * DAY
    assert publish(authority)
    assert listed(served(authority)) == {unknown, device}
    clock.offset = 731 * DAY
    assert publish(authority)
    assert listed(served(authority)) == {unknown, device}
    assert not publish(authority)
    clock.offset += 6 * HOUR
    assert publish(authority)
    assert listed(served(authority)) == {unknown}
    clock.offset += 10 * 365 * DAY
    assert publish(authority)
    assert listed(served(authority)) == {unknown}


def test_a_clock_that_was_wrong_takes_nobody_off_the_list(
    authority: Authority, clock: Clock
) -> None:
    """Threat 45: what left the lists of a wrong clock is back on the first right one."""
    device = revoked(authority, "camera")
    clock.offset = 731 * DAY
    assert publish(authority)
    assert publish(authority, at_once=True)
    assert listed(served(authority)) == set()
    clock.offset = timedelta(0)
    assert publish(authority)
    assert listed(served(authority)) == {device}
    assert publish(authority, at_once=True)
    assert listed(served(authority)) == {device}


def test_one_revoked_after_it_expired_is_on_one_list(authority: Authority, clock: Clock) -> None:
    """It is listed once, so that whoever keeps lists has seen it."""
    publish(authority)
    clock.offset = 800 * DAY
    publish(authority)
    device = revoked(authority, "camera")
    assert publish(authority)
    assert listed(served(authority)) == {device}
    assert publish(authority, at_once=True)
    assert listed(served(authority)) == set()


@pytest.mark.parametrize(
    ("serial", "reason", "is_listed"),
    [
        ("no number", "superseded", False),
        ("-1f", "superseded", False),
        ("0", "superseded", False),
        ("f" * 40, "superseded", False),
        ("1f", "keyCompromise", True),
    ],
)
def test_a_row_that_makes_no_sense_spoils_no_list(
    authority: Authority, serial: str, reason: str, is_listed: bool
) -> None:
    """Others' entries are more important than what somebody wrote by hand."""
    revoke_unknown(authority, 1)
    with authority.database.write() as transaction:
        add_revocation(transaction, Revocation(serial, "x", database_time(transaction), reason))
    publish(authority)
    assert listed(served(authority)) == ({1, 0x1F} if is_listed else {1})


def test_a_publication_ends_when_the_server_does(authority: Authority) -> None:
    """Threat 49: a long list is left where it is."""

    def leave() -> None:
        raise ShuttingDownError

    revoke_unknown(authority, 1)
    with pytest.raises(ShuttingDownError):
        publish(authority, leave)
    assert authority.served_crls.newest("intermediate") is None
    assert publish(authority)


def test_an_outage_is_told_once(
    authority: Authority, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It looks every second: an outage of an hour must not fill a log."""

    def away(*_: object, **__: object) -> bool:
        raise DatabaseUnavailableError

    chore = CrlPublication(authority.database, authority.issuers, authority.served_crls)
    for _ in range(2):
        with monkeypatch.context() as outage:
            outage.setattr(crl_publication, "publish_due_crl", away)
            for _ in range(3):
                chore.work(datetime.now(UTC))
        chore.work(datetime.now(UTC))
    assert [each.levelname for each in caplog.records] == ["WARNING", "WARNING"]


def test_old_lists_are_forgotten(authority: Authority) -> None:
    """The newest few are kept."""
    for _ in range(8):
        publish(authority, at_once=True)
    query = "SELECT count(*) FROM published_crls WHERE issuer = 'intermediate'"
    assert rows_of(authority.database, query) == [(3,)]


# --- the root's list


def test_the_root_s_list_is_signed_in_the_ceremony(authority: Authority) -> None:
    """It is valid until the root's key is needed next: for the next intermediate."""
    crl = served(authority, "root")
    assert listed(crl) == set()
    assert openssl_accepts_crl(crl, authority.root)
    # The web's own rule: lists there are good for ten days at most, or those of a root for a year.
    assert [finding.code for finding in lint_crl(crl)] == ["cabf.crl_invalid_validity_period"]
    assert crl.next_update_utc == authority.issuer.certificate.not_valid_after_utc


def test_the_root_s_list_is_signed_again(authority: Authority, settings: Settings) -> None:
    """With a higher number each time."""
    first = served(authority, "root")
    root_signers = load_root_signers(settings)
    assert len(root_signers) == 1
    publish_root_crls(authority.database, root_signers)
    second = served(authority, "root")
    assert number_of(second) > number_of(first)
    assert second.last_update_utc >= first.last_update_utc
    assert openssl_accepts_crl(second, authority.root)


def test_the_root_s_key_is_not_always_there(settings: Settings, tmp_path: Path) -> None:
    """Neither where its file was moved away, nor where the passphrase is another."""
    assert load_root_signers(settings.model_copy(update={"data_dir": tmp_path / "none"})) == []


def test_the_state_of_revocations(authority: Authority) -> None:
    """It changes with each, also with one that is dated before others."""
    with authority.database.read() as connection:
        none = crl_store.read_state(connection, "intermediate")
        assert none == RevocationState(0, None, 0)
    newest = datetime(2026, 5, 1, 1, 2, 3, 4, tzinfo=UTC)
    for number, at in enumerate((newest, newest - DAY), 1):
        revoke_unknown(authority, number, at)
        with authority.database.read() as connection:
            state = crl_store.read_state(connection, "intermediate")
            assert state == RevocationState(number, newest, 0)
