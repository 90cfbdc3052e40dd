"""GET /api/v1/devices and /api/v1/devices/{serial}: search devices, and read one."""

from collections.abc import Callable
from datetime import datetime
from functools import partial
from typing import Any

from fastapi import APIRouter
from sqlalchemy import Connection
from starlette.responses import Response

from birthmark_sma.authority.devices.search import DeviceFilter
from birthmark_sma.authority.representations import pages
from birthmark_sma.authority.representations.places import parse_expiry
from birthmark_sma.protocol.verdict import DeviceStatus
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

    page = partial(pages.devices_page, wanted=wanted, limit=limit, after=cursor)
    return await answer(request, page)


def _expiring(
    before: datetime, limit: int, cursor: str | None
) -> Callable[[Connection], dict[str, Any]]:
    """Return the query of a page of devices whose certificate ends before a time.

    A cursor has the end and the serial of the last device of its page.
    """
    after = None if cursor is None else parse_expiry(cursor)
    if cursor is not None and after is None:
        raise refused("cursor is next_cursor of the page before.")
    return partial(pages.expiring_page, before=before, limit=limit, after=after)


async def show_device(request: ApiRequest) -> Response:
    """Return a device with its earlier certificates. Raises UnknownDeviceError."""
    check_serials_allowed(request)
    check_query(request)
    name = path_parameter(request)

    def read(connection: Connection) -> Tagged:
        device = pages.read_device(connection, name)
        return Tagged(device, entity_tag(device))

    return await answer(request, read)


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
