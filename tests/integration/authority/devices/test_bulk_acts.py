"""Acts on many devices: which they find, all of it or nothing, and two at once."""

import threading
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import Connection, event, update

from birthmark_sma.authority.authority import Authority
from birthmark_sma.authority.ca import crl_store
from birthmark_sma.authority.ca import store as ca_store
from birthmark_sma.authority.devices import revocation, states
from birthmark_sma.authority.devices import store as device_store
from birthmark_sma.authority.devices.revocation import (
    ActResult,
    DeviceCriteria,
    change_devices,
)
from birthmark_sma.authority.devices.states import StatusChange
from birthmark_sma.authority.devices.store import Device
from birthmark_sma.authority.devices.uniqueness import COLLISION_SEPARATOR
from birthmark_sma.config import Settings
from birthmark_sma.errors import (
    ConfigurationError,
    DatabaseUnavailableError,
    DeviceStatusError,
    UnknownDeviceError,
)
from birthmark_sma.protocol.verdict import DeviceStatus
from birthmark_sma.storage.engine import open_database
from birthmark_sma.storage.schema.devices import registered_devices
from tests.support.authorities import opened, rows_of
from tests.support.devices.actors import ACTOR
from tests.support.devices.acts import revoke_device, suspend_device
from tests.support.devices.registered import device

SUSPEND, REINSTATE, RETIRE = (
    make(ACTOR) for make in (states.suspend, states.reinstate, states.retire)
)
COMPROMISED = states.revoke(ACTOR, "key_compromise", datetime(2026, 1, 2, tzinfo=UTC))


def register(authority: Authority, *new: Device) -> list[str]:
    """Register devices; return their serials."""
    with authority.database.write() as transaction:
        device_store.add_devices(transaction, new)
    return [each.device_serial for each in new]


def act(
    authority: Authority,
    wanted: Sequence[str] | DeviceCriteria,
    change: StatusChange,
    *,
    dry_run: bool = False,
    expected: str | None = None,
) -> ActResult:
    """Do an act on the authority's devices."""
    return change_devices(authority.database, wanted, change, dry_run=dry_run, expected=expected)


def statuses(authority: Authority) -> dict[str, str]:
    """Return the status of each device by serial."""
    return dict(rows_of(authority.database, "SELECT device_serial, status FROM registered_devices"))


def listed(authority: Authority) -> dict[str, tuple[str, datetime | None]]:
    """Return reason and time of the compromise of each revocation, by device."""
    with authority.database.read() as connection:
        return {
            each.device_serial: (each.revocation_reason, each.invalid_since)
            for each in ca_store.list_revocations(connection)
        }


def names(devices: Sequence[revocation.ActedDevice]) -> list[str]:
    """Return the serials of devices of a result."""
    return [each.device_serial for each in devices]


def test_many_devices_in_one_act(authority: Authority) -> None:
    """More than one statement has room for; each with reason, actor and time."""
    serials = register(authority, *map(device, range(1, 2_346)))
    before = authority.database.clock.now()
    wanted = [*reversed(serials), serials[7], serials[7].upper()]  # twice, and in any case
    result = act(authority, wanted, COMPROMISED)
    assert names(result.changed) == serials
    assert not result.unchanged
    assert set(statuses(authority).values()) == {"revoked"}
    entry = ("key_compromise", COMPROMISED.invalid_since)
    assert listed(authority) == dict.fromkeys(serials, entry)
    with authority.database.read() as connection:
        found = device_store.find_device(connection, serials[0])
    assert found is not None
    assert (found.status_reason, found.status_actor) == ("key_compromise", ACTOR.name)
    assert found.status_changed_at is not None
    second = timedelta(seconds=1)
    assert before - second <= found.status_changed_at <= authority.database.clock.now() + second
    again = act(authority, serials, COMPROMISED)
    assert (again.changed, names(again.unchanged)) == ([], serials)


def test_names_in_another_case_are_looked_up_together(authority: Authority) -> None:
    """A look-up for each of 10,000 names took a minute, in which SQLite has no other writer."""
    serials = register(authority, *map(device, range(1, 1_500)))
    statements: list[str] = []
    engine = authority.database.engine
    event.listen(engine, "before_cursor_execute", lambda *given: statements.append(given[2]))
    result = act(authority, [*map(str.swapcase, serials), "nobody"], SUSPEND, dry_run=True)
    assert (names(result.changed), result.unknown) == (serials, ["nobody"])
    assert len(statements) < 20


def test_a_name_that_several_devices_have(authority: Authority) -> None:
    """One of them is found by its exact serial alone, also among many."""
    register(authority, replace(device(1), device_serial="cam-1"), device(2), device(3))
    with authority.database.write() as transaction:
        folded = f"cam-1{COLLISION_SEPARATOR}PROV-1"
        transaction.execute(
            update(registered_devices)
            .where(registered_devices.c.device_serial == device(2).device_serial)
            .values(device_serial="Cam-1", serial_folded=folded)
        )
    third = device(3).device_serial
    with pytest.raises(UnknownDeviceError, match="2 devices have serials that are the same name"):
        act(authority, [third, "CAM-1"], SUSPEND)
    assert names(act(authority, [third, "Cam-1"], SUSPEND).changed) == sorted(["Cam-1", third])


def test_devices_that_changed_since_a_dry_run(authority: Authority) -> None:
    """Nothing is done: for another device, another status, and a status that was changed back."""
    first, second = register(authority, device(1), device(2))
    seen = act(authority, [first, second], SUSPEND, dry_run=True).fingerprint
    assert act(authority, [first], SUSPEND, expected=seen).is_outdated
    for change in (SUSPEND, REINSTATE):
        assert not act(authority, [second], change).is_outdated
        refused = act(authority, [first, second], SUSPEND, expected=seen)
        assert refused.is_outdated
        assert not refused.is_prevented
    assert statuses(authority) == {first: "active", second: "active"}
    seen = act(authority, [first, second], SUSPEND, dry_run=True).fingerprint
    assert not act(authority, [second, first], SUSPEND, expected=seen).is_outdated
    assert set(statuses(authority).values()) == {"suspended"}


def test_an_entry_knows_when_its_certificate_expires(authority: Authority) -> None:
    """So no certificate has to be parsed before the next list."""
    ends = datetime(2027, 1, 1, tzinfo=UTC)
    register(authority, replace(device(1), certificate_expires_at=ends))
    act(authority, DeviceCriteria(family="Test"), RETIRE)
    with authority.database.read() as connection:
        entries = crl_store.iterate_listed(
            connection, "intermediate", authority.database.clock.now()
        )
        [[(_, expires_at)]] = list(entries)
    assert expires_at == ends


DAY = timedelta(days=1)
T0 = datetime(2026, 3, 1, tzinfo=UTC)
FLEET = [
    replace(
        device(1 + number),
        device_family=family,
        app_version=version,
        provisioned_at=T0 + number * DAY,
        table_assignments=tables,
    )
    for number, (family, version, tables) in enumerate(
        [
            ("Pi", None, (1, 2, 3)),
            ("Pi", "1.0", (2, 3, 12)),
            ("Phone", "1.0", (1, 12, 23)),
            ("Phone", "1.1", (3, 4, 5)),
            ("phone", "1.0", (0, 4, 5)),
        ]
    )
]
FILTERS = [
    (DeviceCriteria(family="Pi"), [0, 1]),
    (DeviceCriteria(family="pi"), []),
    (DeviceCriteria(app_version="1.0"), [1, 2, 4]),
    (DeviceCriteria(table_id=12), [1, 2]),
    (DeviceCriteria(table_id=1), [0, 2]),
    (DeviceCriteria(table_id=0), [4]),
    (DeviceCriteria(table_id=99), []),
    (DeviceCriteria(provisioned_after=T0 + 2 * DAY), [2, 3, 4]),
    (DeviceCriteria(provisioned_before=T0 + 2 * DAY), [0, 1]),
    (DeviceCriteria(provisioned_after=T0 + DAY, provisioned_before=T0 + 3 * DAY), [1, 2]),
    (DeviceCriteria(family="Phone", app_version="1.0"), [2]),
    (DeviceCriteria(family="Phone", table_id=12, app_version="1.1"), []),
]


@pytest.mark.parametrize(("wanted", "expected"), FILTERS)
def test_filters(authority: Authority, wanted: DeviceCriteria, expected: list[int]) -> None:
    """Several must all hold. None of them finds what it does not name."""
    serials = register(authority, *FLEET)
    result = act(authority, wanted, SUSPEND, dry_run=True)
    assert names(result.changed) == [serials[number] for number in expected]
    assert set(statuses(authority).values()) == {"active"}
    assert act(authority, wanted, SUSPEND) == result


def test_no_filter_is_not_all_devices(authority: Authority) -> None:
    """A script with an empty variable must not revoke the fleet."""
    register(authority, *FLEET)
    with pytest.raises(ConfigurationError, match="family"):
        act(authority, DeviceCriteria(), COMPROMISED)
    assert act(authority, [], COMPROMISED) == ActResult()
    assert set(statuses(authority).values()) == {"active"}


def test_all_of_the_named_or_none(authority: Authority) -> None:
    """A serial that nobody has, or a device that cannot change, prevents the whole act."""
    serials = register(authority, *map(device, range(1, 4)))
    result = act(authority, [*serials, "nobody", "no one"], COMPROMISED)
    assert result.is_prevented
    assert result.unknown == ["nobody", "no one"]
    with pytest.raises(UnknownDeviceError, match="nobody, no one are"):
        result.check(COMPROMISED)
    revoke_device(authority.database, serials[1], "superseded")
    result = act(authority, serials, SUSPEND)
    assert names(result.refused) == [serials[1]]
    with pytest.raises(DeviceStatusError, match=rf"{serials[1]} is revoked, so it cannot become"):
        result.check(SUSPEND)
    assert statuses(authority) == dict(zip(serials, ["active", "revoked", "active"], strict=True))
    assert listed(authority).keys() == {serials[1]}


def test_a_filter_leaves_the_others_as_they_are(authority: Authority) -> None:
    """Who suspends a family does not mean its revoked devices."""
    serials = register(authority, *map(device, range(1, 4)))
    revoke_device(authority.database, serials[0], "superseded")
    result = act(authority, DeviceCriteria(family="Test"), SUSPEND)
    assert (names(result.refused), names(result.changed)) == ([serials[0]], serials[1:])
    result.check(SUSPEND)
    assert listed(authority)[serials[0]] == ("superseded", None)


def test_a_hold_never_hides_a_revocation(authority: Authority) -> None:
    """A certificate that an operator's own SQL put on the list stays there, with its reason."""
    [serial] = register(authority, device(1))
    revoke_device(authority.database, serial, "key_compromise")
    with authority.database.write() as transaction:
        transaction.exec_driver_sql("UPDATE registered_devices SET status = 'active'")
    for change in (SUSPEND, REINSTATE, RETIRE):
        act(authority, [serial], change)
        assert listed(authority) == {serial: ("key_compromise", None)}


def test_a_compromise_becomes_known_later(authority: Authority) -> None:
    """After a retirement too; the time of the revocation stays, and T can be corrected."""
    [serial] = register(authority, device(1))
    act(authority, [serial], RETIRE)
    [(at,)] = rows_of(authority.database, "SELECT revoked_at FROM revoked_certificates")
    for since in (None, datetime(2026, 1, 2, tzinfo=UTC), datetime(2026, 1, 1, tzinfo=UTC)):
        change = states.revoke(ACTOR, "key_compromise", since)
        assert names(act(authority, [serial], change).changed) == [serial]
        assert listed(authority) == {serial: ("key_compromise", since)}
        assert rows_of(authority.database, "SELECT revoked_at FROM revoked_certificates") == [(at,)]
    weaker = states.revoke(ACTOR, "unspecified")
    assert names(act(authority, [serial], weaker).unchanged) == [serial]
    assert statuses(authority) == {serial: "revoked"}


def test_two_acts_at_once(authority: Authority, settings: Settings) -> None:
    """On the same devices in opposite orders: no deadlock, and the end is that of one of them."""
    serials = register(authority, *map(device, range(1, 51)))
    start = threading.Barrier(2)
    failures: list[BaseException] = []

    def work(program: Authority, wanted: Sequence[str], change: StatusChange) -> None:
        try:
            start.wait(30)
            for _ in range(20):
                act(program, wanted, change)
        except BaseException as error:
            failures.append(error)

    with opened(settings) as other:
        threads = [
            threading.Thread(target=work, args=[authority, serials, SUSPEND]),
            threading.Thread(target=work, args=[other, serials[::-1], REINSTATE]),
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert failures == []
    [status] = set(statuses(authority).values())  # an act is seen as a whole
    assert len(listed(authority)) == (50 if status == "suspended" else 0)


def test_an_act_that_fails_leaves_nothing(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Devices, the list and its generation are of one transaction."""
    serials = register(authority, *map(device, range(1, 6)))

    def fail(_transaction: Connection) -> None:
        raise DatabaseUnavailableError

    with monkeypatch.context() as patched:
        patched.setattr(device_store, "await_verdicts", fail)
        with pytest.raises(DatabaseUnavailableError):
            act(authority, serials, COMPROMISED)
    assert set(statuses(authority).values()) == {"active"}
    assert listed(authority) == {}
    generation = "SELECT revocation_generation FROM authority"
    assert rows_of(authority.database, generation) == [(0,)]
    act(authority, serials, COMPROMISED)
    assert rows_of(authority.database, generation) == [(1,)]
    act(authority, serials, COMPROMISED)  # nothing changed: no new list
    assert rows_of(authority.database, generation) == [(1,)]


def test_the_database_is_gone() -> None:
    """Threat 19: an outage is not an unknown device."""
    database = open_database("postgresql://sma:x@127.0.0.1:1/sma")
    with pytest.raises(DatabaseUnavailableError):
        change_devices(database, ["camera"], SUSPEND)
    database.close()


def test_a_suspension_marks_flags_only_when_it_ends(authority: Authority) -> None:
    """Who reinstates a device has looked at its flags: in one act for all of them."""
    serials = register(authority, *map(device, range(1, 4)))
    for serial in serials:
        suspend_device(authority.database, serial)
        with authority.database.write() as transaction:
            transaction.exec_driver_sql(
                "INSERT INTO device_flags (device_serial, day, mode, pictures, usual,"
                f" days_compared, threshold, flagged_at) VALUES ('{serial}', '2026-01-01',"
                " 'flag', 1, 1, 1, 1, '2026-01-01 00:00:00+00:00')"
            )
    act(authority, serials[:2], REINSTATE)
    open_flags = "SELECT device_serial FROM device_flags WHERE reviewed_at IS NULL"
    assert rows_of(authority.database, open_flags) == [(serials[2],)]
    with authority.database.read() as connection:
        found = device_store.find_device(connection, serials[0])
    assert found is not None
    assert found.status is DeviceStatus.ACTIVE
    assert (found.status_reason, found.status_actor) == (None, ACTOR.name)
