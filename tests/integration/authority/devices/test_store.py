"""Registered devices: what goes in comes out, and constraints decide who is first."""

import threading
from dataclasses import replace

import pytest

from birthmark_sma.authority.devices import search as device_search
from birthmark_sma.authority.devices import store as device_store
from birthmark_sma.authority.devices import uniqueness
from birthmark_sma.authority.devices.search import DeviceFilter
from birthmark_sma.authority.devices.store import Device
from birthmark_sma.errors import DatabaseUnavailableError
from birthmark_sma.protocol.verdict import DeviceStatus
from birthmark_sma.storage.engine import Database, open_database
from tests.support.devices.registered import device


def add(database: Database, *new: Device) -> set[str]:
    """Add devices in a transaction of their own."""
    with database.write() as transaction:
        return device_store.add_devices(transaction, new)


def find(database: Database, device_serial: str) -> Device | None:
    """Find a device."""
    with database.read() as connection:
        return device_store.find_device(connection, device_serial)


def test_a_device_comes_back_as_it_went_in(database: Database) -> None:
    """Every field, the three tables in their order, the time to the microsecond."""
    odd = replace(
        device(1),
        device_serial="Kamera Süd № 東京 😀 'quoted' \\ \"%s\" :name",
        app_version="1.2.3",
        status=DeviceStatus.SUSPENDED,
        device_family="a" * 50,
    )
    assert add(database, odd, device(2)) == {odd.provisioning_id, device(2).provisioning_id}
    assert find(database, odd.device_serial) == odd
    assert find(database, "device-0002") == device(2)
    assert find(database, "device-0003") is None


def test_serials_are_found_exactly(database: Database) -> None:
    """Neither case nor spaces nor wildcards make one serial stand for another."""
    add(database, device(1))
    for other in ("DEVICE-0001", "device-0001 ", " device-0001", "device-%", "device-0001\t"):
        assert find(database, other) is None


@pytest.mark.parametrize(
    "field",
    [
        "device_serial",
        "nuc_hash",
        "public_key_fingerprint",
        "certificate_serial",
        "provisioning_id",
    ],
)
def test_a_collision_leaves_the_first_standing(database: Database, field: str) -> None:
    """Threat 8: the second is left out without an error, and its neighbours are not."""
    add(database, device(1))
    second = replace(device(2), **{field: getattr(device(1), field)})
    added = add(database, second, device(3))
    assert added - {device(1).provisioning_id} == {device(3).provisioning_id}
    assert find(database, "device-0001") == device(1)
    assert find(database, "device-0002") is None
    with database.read() as connection:
        assert device_store.count_devices(connection) == 2


def test_a_collision_inside_one_batch(database: Database) -> None:
    """The earlier of two in one batch is added."""
    twin = replace(device(2), device_serial="device-0001")
    assert add(database, device(1), twin) == {device(1).provisioning_id}
    assert find(database, "device-0001") == device(1)


def test_a_large_batch(database: Database) -> None:
    """More devices than a statement has room for parameters."""
    many = [device(number) for number in range(3_000)]
    assert len(add(database, *many)) == 3_000
    with database.read() as connection:
        assert device_store.count_devices(connection) == 3_000


def test_programs_that_add_the_same_at_once(database: Database, database_url: str) -> None:
    """Each of twenty serials is added by exactly one of four programs."""
    added: list[str] = []
    start = threading.Barrier(4)

    def run(program: int) -> None:
        own = open_database(database_url)
        start.wait(30)
        for number in range(20):
            mine = replace(
                device(number),
                provisioning_id=f"{program}-{number}",
                certificate_serial=f"{program}-{number}",
            )
            added.extend(add(own, mine))
        own.close()

    threads = [threading.Thread(target=run, args=[program]) for program in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(each.partition("-")[2] for each in added) == sorted(map(str, range(20)))


# --- lookups


def test_what_is_taken(database: Database) -> None:
    """Keys and NUC hashes of others are recognised."""
    add(database, device(1))
    with database.read() as connection:
        for number in (1, 2):
            mine = device(number)
            for mark in range(3):
                marks = [b"-", b"-"]
                if mark:
                    marks[mark - 1] = (mine.public_key_fingerprint, mine.nuc_hash)[mark - 1]
                serial = mine.device_serial if mark == 0 else "-"
                taken = uniqueness.find_conflicts(connection, serial, *marks)
                assert taken == tuple(number == 1 and mark == place for place in range(3))


def test_a_thousand_at_once(database: Database) -> None:
    """In one statement; those that collide, with the database or among them, are left out."""
    add(database, device(500), device(501))
    twin = replace(device(2_000), public_key_fingerprint=device(7).public_key_fingerprint)
    new = [*(device(number) for number in range(1_000)), twin]
    added = add(database, *new)
    assert added == {device(n).provisioning_id for n in range(1_000) if n not in {500, 501}}
    assert find(database, "device-0999") == device(999)
    with database.read() as connection:
        known = device_store.find_provisioning_ids(connection, ["device-0001", "device-9999"])
    assert known == {"device-0001": device(1).provisioning_id}


def test_pages_of_devices(database: Database) -> None:
    """Page by page one sees every device once, in the order of serials."""
    add(database, *(device(number) for number in range(25)))
    seen: list[str] = []
    after = None
    with database.read() as connection:
        while page := device_search.search(connection, DeviceFilter(), limit=10, after=after):
            seen += [each.device_serial for each in page]
            after = seen[-1]
    assert seen == [device(number).device_serial for number in range(25)]


def test_families_largest_first(database: Database) -> None:
    """Families of one size stand in the order of their names."""
    families = ["b", "a", "c", "c", "c"]
    add(
        database,
        *(replace(device(number), device_family=family) for number, family in enumerate(families)),
    )
    with database.read() as connection:
        assert list(device_store.count_by_family(connection).items()) == [
            ("c", 3),
            ("a", 1),
            ("b", 1),
        ]


# --- the database is gone


def test_an_outage_is_not_an_unknown_device() -> None:
    """Threat 19: a lookup without a database raises, and never says that there is no device."""
    database = open_database("postgresql://sma:x@127.0.0.1:1/sma")
    with pytest.raises(DatabaseUnavailableError):
        find(database, "device-0001")
    database.close()
