"""Dashboard page to allow a device to be provisioned once more under its serial, or to forbid it.

The rules are in `authority/devices/re_enrolments.py`. The page offers what is not the case: it
allows if nothing is allowed, else it forbids.
"""

from datetime import timedelta
from enum import StrEnum

from fastapi import APIRouter
from sqlalchemy import Connection
from starlette.responses import Response

from birthmark_sma.authority.acts.actor import ActKind
from birthmark_sma.authority.devices import re_enrolments
from birthmark_sma.authority.devices import store as device_store
from birthmark_sma.authority.devices.re_enrolments import ReEnrolment
from birthmark_sma.authority.devices.revocation import find_named
from birthmark_sma.authority.devices.store import Device
from birthmark_sma.errors import DeviceStatusError
from birthmark_sma.protocol.verdict import DeviceStatus
from birthmark_sma.storage.portable_sql import database_time
from birthmark_sma.web.dashboard import rendering
from birthmark_sma.web.dashboard.actions.performing import (
    find_act,
    find_actor,
    find_earlier,
    perform,
    show_act,
)
from birthmark_sma.web.dashboard.forms import read_session_form
from birthmark_sma.web.query_params import (
    Source,
    parse_choice,
    parse_name,
    parse_text,
    refused,
)
from birthmark_sma.web.routes import RE_ENROLMENT
from birthmark_sma.web.server_state import ApiRequest

router = APIRouter(include_in_schema=False)


class Period(StrEnum):
    """The time for which a re-enrolment is allowed."""

    HOUR = "1 hour"
    DAY = "1 day"
    WEEK = "7 days"
    MONTH = "30 days"
    QUARTER = "90 days"


_LENGTHS = {
    Period.HOUR: timedelta(hours=1),
    Period.DAY: timedelta(days=1),
    Period.WEEK: timedelta(days=7),
    Period.MONTH: timedelta(days=30),
    Period.QUARTER: timedelta(days=90),
}
_CHANGED = "The device changed since this page was made. Nothing was done."


async def show_permission(request: ApiRequest) -> Response:
    """Show whether a device may be re-enrolled, and offer the opposite."""
    serial = _parse_serial(request)
    return await perform(request, lambda: _show(request, serial))


async def change_permission(request: ApiRequest) -> Response:
    """Allow or forbid the re-enrolment of a device, as the operator has confirmed.

    Raises RequestError if the form comes from another site.
    """
    form = await read_session_form(request)
    serial, allow = _parse_serial(form), parse_text(form, "allow") == "yes"
    period = parse_choice(form, "period", Period) or Period.WEEK
    is_confirmed, seen = parse_text(form, "confirmed") is not None, form.get("seen", "")

    def work() -> Response:
        database, actor = request.server.authority.database, find_actor(request)
        if not is_confirmed:
            return _show(request, serial)

        def change(transaction: Connection) -> bool:
            """Return False if the device is not as the operator has seen it."""
            # Locked before the comparison: the same form may be sent twice at once.
            device_store.lock_device(transaction, find_named(transaction, serial).device_serial)
            device, permission = _find(transaction, serial)
            if seen != _seen(device, permission) or allow is (permission is not None):
                return False
            if allow:
                re_enrolments.permit(transaction, device.device_serial, _LENGTHS[period], actor)
            else:
                re_enrolments.withdraw(transaction, device.device_serial, actor)
            return True

        try:
            is_done = database.transact(change)
        except DeviceStatusError:
            return _show(request, serial, _CHANGED)
        with database.read() as connection:
            if is_done:
                return show_act(find_act(connection, request))
            kind = (
                ActKind.DEVICE_ALLOW_RE_ENROLMENT if allow else ActKind.DEVICE_FORBID_RE_ENROLMENT
            )
            subject = find_named(connection, serial).device_serial
            done = find_earlier(connection, request, kind, subject)
        return show_act(done) if done else _show(request, serial, _CHANGED)

    return await perform(request, work)


router.add_api_route(RE_ENROLMENT.path, show_permission, methods=["GET"])
router.add_api_route(RE_ENROLMENT.path, change_permission, methods=["POST"])


def _parse_serial(source: Source) -> str:
    serial = parse_name(source, "serial")
    if serial is None:
        raise refused("serial names the device.")
    return serial


def _find(connection: Connection, serial: str) -> tuple[Device, ReEnrolment | None]:
    """Return a device and the permission that is in force. Raises UnknownDeviceError."""
    device = find_named(connection, serial)
    now = database_time(connection)
    return device, re_enrolments.find(connection, device.device_serial, now)


def _seen(device: Device, permission: ReEnrolment | None) -> str:
    """Return the state of a device that the operator has seen, to find out whether it changed."""
    until = "" if permission is None else permission.allowed_until.isoformat()
    return f"{device.certificate_serial} {device.status.value} {until}"


def _show(request: ApiRequest, serial: str, fault: str | None = None) -> Response:
    with request.server.authority.database.read() as connection:
        device, permission = _find(connection, serial)
    html = rendering.render(
        request,
        "actions/re_enrolment.html",
        device=device,
        permission=permission,
        is_active=device.status is DeviceStatus.ACTIVE,
        periods=list(Period),
        usual=Period.WEEK,
        seen=_seen(device, permission),
        fault=fault,
    )
    return rendering.html_response(html, 200 if fault is None else 409)
