"""GET /api/v1/devices and /api/v1/devices/{serial}: search devices, and read one."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from fastapi import APIRouter
from sqlalchemy import Connection
from starlette.responses import Response

from birthmark_sma.authority.devices import certificates_store, re_enrolments
from birthmark_sma.authority.devices import search as device_search
from birthmark_sma.authority.devices import store as device_store
from birthmark_sma.authority.devices.revocation import find_by_serial_or_certificate
from birthmark_sma.authority.devices.search import DeviceFilter
from birthmark_sma.authority.representations.devices import device_as_json, whole_device_as_json
from birthmark_sma.protocol.verdict import DeviceStatus
from birthmark_sma.storage.portable_sql import database_time
from birthmark_sma.web.api.administration import examples
from birthmark_sma.web.api.administration.calls import (
    Tagged,
    answer,
    check_query,
    check_serials_allowed,
    entity_tag,
    parse_flag,
    parse_limit,
    path_parameter,
)
from birthmark_sma.web.api.administration.documentation import PAGE, described, query
from birthmark_sma.web.api.administration.responses import DeviceResponse, DevicesResponse
from birthmark_sma.web.query_params import parse_choice, parse_name, parse_text, parse_time, refused
from birthmark_sma.web.routes import DEVICE, DEVICES
from birthmark_sma.web.server_state import ApiRequest

OF_PATH = ("serial", "The device's serial, percent-encoded, in any case", "camera-0001")
_FILTERS = ("begins", "family", "status", "flagged")
_EXPIRES = "expires_before"

router = APIRouter(tags=["administer"])


async def list_devices(request: ApiRequest) -> Response:
    """Return a page of the devices that match all filters, sorted by serial."""
    check_serials_allowed(request)
    check_query(request, *_FILTERS, _EXPIRES, "limit", "cursor")
    limit, cursor = parse_limit(request), parse_name(request, "cursor")
    wanted = DeviceFilter(
        begins=parse_text(request, "begins"),
        family=parse_name(request, "family"),
        status=parse_choice(request, "status", DeviceStatus),
        flagged=parse_flag(request, "flagged"),
    )
    before = parse_time(request, _EXPIRES)
    if before is not None:
        if wanted != DeviceFilter():
            raise refused(f"{_EXPIRES} has no other filter beside it.")
        return await answer(request, _expiring(before, limit, cursor))

    def read(connection: Connection) -> dict[str, Any]:
        # One more than a page, to know whether there is a next page.
        found = device_search.search(connection, wanted, limit=limit + 1, after=cursor)
        return {
            "devices": [device_as_json(each) for each in found[:limit]],
            "total": device_store.count_devices(connection),
            "next_cursor": found[limit - 1].device_serial if len(found) > limit else None,
        }

    return await answer(request, read)


def _expiring(
    before: datetime, limit: int, cursor: str | None
) -> Callable[[Connection], dict[str, Any]]:
    """Return the query of a page of devices whose certificate ends before a time.

    A cursor has the end and the serial of the last device of its page.
    """
    end, _, serial = (cursor or "").partition(" ")
    try:
        after = (datetime.fromisoformat(end).astimezone(UTC), serial) if cursor else None
    except (ValueError, OverflowError):
        raise refused("cursor is next_cursor of the page before.") from None

    def read(connection: Connection) -> dict[str, Any]:
        found = certificates_store.list_expiring(connection, before, limit=limit + 1, after=after)
        following = None
        if len(found) > limit:
            last = found[limit - 1]
            following = f"{last.certificate_expires_at:%Y-%m-%dT%H:%M:%SZ} {last.device_serial}"
        return {"devices": [each._asdict() for each in found[:limit]], "next_cursor": following}

    return read


async def show_device(request: ApiRequest) -> Response:
    """Return a device with its earlier certificates. Raises UnknownDeviceError."""
    check_serials_allowed(request)
    check_query(request)
    name = path_parameter(request)

    def read(connection: Connection) -> Tagged:
        device = read_device(connection, name)
        return Tagged(device, entity_tag(device))

    return await answer(request, read)


def read_device(connection: Connection, name: str) -> dict[str, Any]:
    """Return a device as `show_device` shows it. Raises UnknownDeviceError."""
    device = find_by_serial_or_certificate(connection, name)
    serial = device.device_serial
    permission = re_enrolments.find(connection, serial, database_time(connection))
    until = None if permission is None else permission.allowed_until
    return whole_device_as_json(device, until, certificates_store.list_earlier(connection, serial))


router.add_api_route(
    endpoint=list_devices,
    **described(
        DEVICES,
        "List and search devices",
        DevicesResponse,
        examples.DEVICES,
        parameters=(
            query("begins", "The beginning of the serial, or a whole certificate's serial number"),
            query("family", "The device family"),
            query("status", "The status", enum=[each.value for each in DeviceStatus]),
            query("flagged", "`true`: only devices with a flag to review", enum=["true", "false"]),
            query(_EXPIRES, "Devices in use whose certificate ends before this time, by the end"),
            *PAGE,
        ),
    ),
)
router.add_api_route(
    endpoint=show_device,
    **described(
        DEVICE,
        "Read a device",
        DeviceResponse,
        examples.WHOLE_DEVICE,
        of_path=(OF_PATH[0], f"{OF_PATH[1]}, or the serial number of a certificate", OF_PATH[2]),
        errors=(404, "unknown-device"),
        tagged=True,
    ),
)
