"""Renewal orders in the register: SQL and the pure rule agree, and a large fleet is counted."""

import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import partial
from itertools import product
from typing import Any

import pytest
from sqlalchemy import update

from birthmark_sma.authority.devices import store as device_store
from birthmark_sma.authority.devices.store import Device
from birthmark_sma.authority.renewal import orders
from birthmark_sma.authority.renewal.information import find_orders
from birthmark_sma.authority.renewal.windows import RenewalCriteria
from birthmark_sma.errors import RenewalOrderError
from birthmark_sma.protocol.verdict import DeviceStatus
from birthmark_sma.storage.engine import Database
from birthmark_sma.storage.portable_sql import database_time
from birthmark_sma.storage.schema.certificates import renewal_orders
from birthmark_sma.storage.schema.devices import registered_devices
from tests.support.devices.actors import ACTOR

WEEK = timedelta(days=7)
DAY = timedelta(days=1)


def fleet(database: Database) -> list[Device]:
    """Register devices of each family, app version, status and age, with and without renewals."""
    with database.write() as transaction:
        now = database_time(transaction)
        kinds = product(("A", "B"), ("1", None), ("active", "suspended", "revoked"), range(3))
        new = [
            Device(
                device_serial=f"device-{number:03}",
                nuc_hash=number.to_bytes(32, "big"),
                table_assignments=(number % 4, 4, 5),
                device_certificate="",
                certificate_serial=f"{number + 1:x}",
                device_public_key="",
                public_key_fingerprint=number.to_bytes(32, "big"),
                device_family=family,
                app_version=version,
                status=DeviceStatus(status),
                provisioning_id=f"PROV-{number}",
                provisioned_at=now - DAY if age else now + DAY,
                table_epochs=(0, 0, 0),
                certificate_expires_at=now + 100 * DAY,
                certificate_issuer="intermediate" if number % 5 else "intermediate-2",
                certificate_renewed_at=now + DAY if age == 2 else None,
            )
            for number, (family, version, status, age) in enumerate(kinds)
        ]
        assert len(device_store.add_devices(transaction, new)) == len(new)
    return new


@pytest.mark.parametrize(
    "criteria",
    [
        RenewalCriteria(),
        RenewalCriteria(device_family="A"),
        RenewalCriteria(app_version="1"),
        RenewalCriteria(certificate_issuer="intermediate-2"),
        RenewalCriteria(table_id=2),
        RenewalCriteria("intermediate", "B", "1", 4),
    ],
)
def test_the_number_is_that_of_the_devices_whose_window_moves(
    database: Database, criteria: RenewalCriteria
) -> None:
    """What an operator is told is what devices are told."""
    devices = fleet(database)
    given = orders.give_order(database, criteria, WEEK, ACTOR)
    named = [each for each in devices if find_orders(each, [given.time])]
    assert given.matched == len(named) > 0
    assert orders.preview(database, criteria) == len(named)
    with database.read() as connection:
        progress = orders.read_progress(connection, given)
        assert orders.count_stragglers(connection, given) == len(named)
        assert orders.list_open(connection) == [given]
    assert progress.left == len(named)


def test_progress(database: Database) -> None:
    fleet(database)
    given = orders.give_order(database, RenewalCriteria(), WEEK, ACTOR)
    some = [f"device-{number:03}" for number in (1, 10)]  # active, and provisioned before
    with database.write() as transaction:
        before = orders.read_progress(transaction, given)
        later = database_time(transaction) + timedelta(hours=1)
        transaction.execute(
            update(registered_devices)
            .where(registered_devices.c.device_serial.in_(some))
            .values(certificate_renewed_at=later)
        )
        after = orders.read_progress(transaction, given)
        assert orders.count_renewed_since(transaction, later) == after.renewed
    assert (after.renewed, after.left) == (before.renewed + 2, before.left - 2)


def test_orders_are_bounded(database: Database) -> None:
    """Each request for a window reads all open orders."""
    fleet(database)
    for _ in range(orders.MOST_OPEN):
        last = orders.give_order(database, RenewalCriteria(), WEEK, ACTOR)
    with pytest.raises(RenewalOrderError, match="sma renewals cancel"):
        orders.give_order(database, RenewalCriteria(), WEEK, ACTOR)
    orders.cancel(database, last.id, actor=ACTOR)
    orders.give_order(database, RenewalCriteria(), WEEK, ACTOR)
    with database.read() as connection:
        assert len(orders.list_open(connection)) == orders.MOST_OPEN
        assert len(orders.list_orders(connection, limit=100)) == orders.MOST_OPEN + 1


def test_orders_at_once_are_bounded_too(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Threat 36: both would find room for the last one."""
    fleet(database)
    for _ in range(orders.MOST_OPEN - 1):
        orders.give_order(database, RenewalCriteria(), DAY, ACTOR)
    count = orders.count_matching

    def count_slowly(*arguments: Any) -> int:
        time.sleep(0.2)
        return count(*arguments)

    monkeypatch.setattr(orders, "count_matching", count_slowly)
    give = partial(orders.give_order, database, RenewalCriteria(), DAY, ACTOR)
    with ThreadPoolExecutor(3) as threads:
        given = [threads.submit(give) for _ in range(3)]
    refused = [each.exception() for each in given]
    assert refused.count(None) == 1
    assert {type(each) for each in refused if each} == {RenewalOrderError}


def test_an_order_that_names_nobody(database: Database) -> None:
    with pytest.raises(RenewalOrderError, match="Nothing was ordered"):
        orders.give_order(database, RenewalCriteria(), WEEK, ACTOR)
    with database.read() as connection:
        assert connection.execute(renewal_orders.select()).all() == []
