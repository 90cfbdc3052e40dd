"""Pages of what the authority has, as JSON objects, read from the database.

The administration API and the command line both call these, so their objects cannot differ. A page
has up to `limit` items, and `next_cursor` where there are more. Nothing here shows a secret.
"""

from dataclasses import asdict
from datetime import date, datetime
from typing import Any

from sqlalchemy import Connection

from birthmark_sma.authority.ca import store as ca_store
from birthmark_sma.authority.ca.issuers import OpenCa
from birthmark_sma.authority.devices import abuse_flags, certificates_store, re_enrolments
from birthmark_sma.authority.devices import search as device_search
from birthmark_sma.authority.devices import store as device_store
from birthmark_sma.authority.devices.revocation import find_by_serial_or_certificate
from birthmark_sma.authority.devices.search import DeviceFilter
from birthmark_sma.authority.key_tables.epochs import list_states
from birthmark_sma.authority.representations.certificates import ca_as_json
from birthmark_sma.authority.representations.devices import (
    device_as_json,
    flag_as_json,
    whole_device_as_json,
)
from birthmark_sma.authority.representations.places import describe_expiry
from birthmark_sma.storage.portable_sql import database_time


def devices_page(
    connection: Connection, wanted: DeviceFilter, *, limit: int, after: str | None
) -> dict[str, Any]:
    """Return the devices after a serial that match a filter, sorted by serial."""
    # One more than a page, to know whether there is a next page. So do all lists here.
    found = device_search.search(connection, wanted, limit=limit + 1, after=after)
    return {
        "devices": [device_as_json(each) for each in found[:limit]],
        "total": device_store.count_devices(connection),
        "next_cursor": found[limit - 1].device_serial if len(found) > limit else None,
    }


def expiring_page(
    connection: Connection, before: datetime, *, limit: int, after: tuple[datetime, str] | None
) -> dict[str, Any]:
    """Return the devices in use whose certificate ends before a time, sorted by the end."""
    found = certificates_store.list_expiring(connection, before, limit=limit + 1, after=after)
    following = None
    if len(found) > limit:
        last = found[limit - 1]
        following = describe_expiry(last.certificate_expires_at, last.device_serial)
    return {"devices": [each._asdict() for each in found[:limit]], "next_cursor": following}


def read_device(connection: Connection, name: str) -> dict[str, Any]:
    """Return a device with its permission to re-enrol and its earlier certificates.

    `name` is its serial, or the serial number of its certificate. Raises UnknownDeviceError.
    """
    device = find_by_serial_or_certificate(connection, name)
    serial = device.device_serial
    permission = re_enrolments.find(connection, serial, database_time(connection))
    until = None if permission is None else permission.allowed_until
    return whole_device_as_json(device, until, certificates_store.list_earlier(connection, serial))


def flags_page(
    connection: Connection,
    *,
    shadow: bool,
    reviewed: bool,
    limit: int,
    after: tuple[date, str] | None = None,
) -> dict[str, Any]:
    """Return abuse flags, the latest day first. `after` is the day and the serial of a flag."""
    total, found = abuse_flags.list_flags(
        connection, shadow=shadow, reviewed=reviewed, limit=limit + 1, after=after
    )
    last = found[limit - 1].flag if len(found) > limit else None
    return {
        "total": total,
        "flags": [flag_as_json(each) for each in found[:limit]],
        "next_cursor": None if last is None else f"{last.day} {last.device_serial}",
    }


def tables_page(
    connection: Connection, *, only_open: bool, limit: int, after: int | None
) -> dict[str, Any]:
    """Return the key tables after an id, by id; with `only_open` those with an open overlap."""
    states = list_states(connection)
    overlaps = [each for each in states if each.accepted_until is not None]
    found = [
        each
        for each in (overlaps if only_open else states)
        if after is None or each.table_id > after
    ]
    return {
        "total": len(states),
        "open_overlaps": len(overlaps),
        "tables": [asdict(each) for each in found[:limit]],
        "next_cursor": str(found[limit - 1].table_id) if len(found) > limit else None,
    }


def list_issuers(connection: Connection, now: datetime) -> dict[str, Any]:
    """Return all CAs with their certificates, states, and the number of devices under each."""
    cas = [OpenCa(each, each.load()) for each in ca_store.list_cas(connection)]
    devices = ca_store.count_devices_under(connection)
    return {"issuers": [ca_as_json(ca, devices, now) for ca in cas], "next_cursor": None}
