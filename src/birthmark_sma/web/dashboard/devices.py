"""Dashboard page "Devices": search the devices, page through them, show one of them."""

from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta
from enum import StrEnum
from typing import Any, NamedTuple

from cryptography import x509
from fastapi import APIRouter
from sqlalchemy import Connection
from starlette.responses import Response

from birthmark_sma.authority.acts import search as act_search
from birthmark_sma.authority.acts.actor import ActKind
from birthmark_sma.authority.acts.search import ActFilter
from birthmark_sma.authority.authority import Authority
from birthmark_sma.authority.devices import abuse_flags as device_flags
from birthmark_sma.authority.devices import (
    activity as device_activity,
)
from birthmark_sma.authority.devices import certificates_store, re_enrolments
from birthmark_sma.authority.devices import (
    search as device_search,
)
from birthmark_sma.authority.devices import (
    store as device_store,
)
from birthmark_sma.authority.devices.revocation import find_named
from birthmark_sma.authority.devices.search import DeviceFilter, DeviceOrder
from birthmark_sma.authority.devices.states import Act, list_acts
from birthmark_sma.authority.devices.store import Device
from birthmark_sma.authority.renewal.information import find_window
from birthmark_sma.authority.renewal.registration import find_current
from birthmark_sma.authority.renewal.rules import find_obstacle
from birthmark_sma.authority.validation import audit_search
from birthmark_sma.authority.validation.audit_search import AuditFilter
from birthmark_sma.protocol.verdict import DeviceStatus
from birthmark_sma.web.dashboard.actions.selection import filter_query, parse_filter
from birthmark_sma.web.dashboard.certificate_view import CertificateView
from birthmark_sma.web.dashboard.rendering import render_page
from birthmark_sma.web.middleware.timeouts import run_with_timeout
from birthmark_sma.web.query_params import link, parse_choice, parse_name, refused
from birthmark_sma.web.server_state import ApiRequest

LIST = "/dashboard/devices"
DEVICE = "/dashboard/device"
CERTIFICATE = "/dashboard/device/certificate"
VALIDATIONS = "/dashboard/validations"
ACTS = "/dashboard/acts"

_A_PAGE = 50  # devices of a page
_MOST_FAMILIES = 200  # families to choose from
_DAYS = 30  # days in the chart of a device's PASSes
_LATEST = 15  # newest validations of a device
_FLAGS = 20  # newest abuse flags of a device
_ACTS = 5  # newest acts on a device
_KIND = ActKind.DEVICE_SUSPEND.subject_kind
_LOOKING = 0.04  # seconds to search the audit log for one device; the page says how far it got
_SECONDS = 10.0

router = APIRouter(include_in_schema=False)


@router.get(LIST)
async def list_devices(request: ApiRequest) -> Response:
    """Show a page of the devices that match the filter, in the order that was asked for.

    Raises RequestError for an order that would read the whole register.
    """
    wanted = parse_filter(request)
    order = parse_choice(request, "sort", DeviceOrder) or DeviceOrder.SERIAL
    descending = parse_choice(request, "direction", Direction) is Direction.DESCENDING
    if not order.serves(wanted):
        raise refused(f"These devices cannot be sorted by {order.value}: sort them by serial.")
    after = parse_name(request, "after")

    def read(connection: Connection) -> dict[str, Any]:
        # One more than a page, to know whether there is a next page.
        found = device_search.search(
            connection,
            wanted,
            limit=_A_PAGE + 1,
            after=after,
            order=order,
            descending=descending,
        )
        families = device_store.count_by_family(connection)
        filtered = filter_query(wanted)
        is_usual = order is DeviceOrder.SERIAL and not descending
        query = filtered | ({} if is_usual else _sorted(order, descending=descending))
        shown = found[:_A_PAGE]
        more = len(found) > _A_PAGE
        total = sum(families.values())
        return {
            "devices": shown,
            "query": query,
            "acts": list(Act),
            "wanted": wanted,
            "is_filtered": wanted != DeviceFilter(),
            "families": list(families)[:_MOST_FAMILIES],
            "statuses": [each.value for each in DeviceStatus],
            "total": total,
            "counts": _count_statuses(connection, wanted, total),
            "columns": {
                each.value: _Column.of(each, wanted, filtered, order, descending=descending)
                for each in DeviceOrder
            },
            "first_page": link(LIST, query) if after is not None else None,
            "next_page": link(LIST, query | {"after": shown[-1].device_serial}) if more else None,
        }

    return await render_page(request, "devices.html", read)


class Direction(StrEnum):
    """The directions in which a list is sorted."""

    ASCENDING = "ascending"
    DESCENDING = "descending"


class _Column(NamedTuple):
    """The head of a column: a link that sorts by it, or None, and the value of aria-sort."""

    url: str | None
    sorted: str | None

    @classmethod
    def of(
        cls,
        order: DeviceOrder,
        wanted: DeviceFilter,
        filtered: Mapping[str, object],
        current: DeviceOrder,
        *,
        descending: bool,
    ) -> "_Column":
        """Return the head of the column of `order` in a list sorted by `current`."""
        if not order.serves(wanted):
            return cls(None, None)
        if order is current:
            direction = Direction.DESCENDING if descending else Direction.ASCENDING
            return cls(
                link(LIST, {**filtered, **_sorted(order, descending=not descending)}), direction
            )
        # The newest time is of interest, but the first serial.
        is_time = order is not DeviceOrder.SERIAL
        return cls(link(LIST, {**filtered, **_sorted(order, descending=is_time)}), None)


def _sorted(order: DeviceOrder, *, descending: bool) -> dict[str, object]:
    direction = Direction.DESCENDING if descending else Direction.ASCENDING
    return {"sort": order.value, "direction": direction.value}


def _count_statuses(
    connection: Connection, wanted: DeviceFilter, total: int
) -> list[tuple[str, int, str, bool]]:
    """Return each status with its number of devices, a link, and whether it is shown alone.

    The index counts those that are not active. The others are the rest of the register.
    """
    others = device_store.count_out_of_order(connection)
    numbers = {DeviceStatus.ACTIVE: total - sum(others.values()), **others}
    counts = [
        (
            each.value,
            numbers.get(each, 0),
            link(LIST, {"status": each.value}),
            each is wanted.status,
        )
        for each in DeviceStatus
    ]
    return [("all", total, LIST, wanted == DeviceFilter()), *counts]


@router.get(DEVICE)
async def show_device(request: ApiRequest) -> Response:
    """Show a device: certificate, status, PASSes of the last 30 days, newest validations."""
    authority = request.server.authority
    device_serial = _serial_of(request)
    return await render_page(
        request, "device.html", lambda connection: _read(connection, authority, device_serial)
    )


@router.get(CERTIFICATE)
async def download(request: ApiRequest) -> Response:
    """Return a device's certificate and its CA chain as PEM."""
    authority = request.server.authority
    device_serial = _serial_of(request)

    def read() -> list[str]:
        with authority.database.read() as connection:
            device = find_named(connection, device_serial)
        return [device.device_certificate, *_chain_of(authority, device)]

    chain = await run_with_timeout(request.server.slow, read, _SECONDS)
    # No serial in the file name: a serial may contain any printable character.
    return Response(
        "".join(each if each.endswith("\n") else each + "\n" for each in chain),
        headers={"Content-Disposition": 'attachment; filename="device-certificate.pem"'},
        media_type="application/x-pem-file",
    )


def _serial_of(request: ApiRequest) -> str:
    device_serial = parse_name(request, "serial")
    if device_serial is None:
        raise refused("serial names the device.")
    return device_serial


def _read(connection: Connection, authority: Authority, device_serial: str) -> dict[str, Any]:
    now = authority.database.clock.now()
    device = find_named(connection, device_serial)
    device_serial = device.device_serial
    days = [now.date() - timedelta(days=ago) for ago in reversed(range(_DAYS))]
    passes = device_activity.passes_by_day(connection, device_serial, days)
    history = audit_search.search(
        connection, AuditFilter(device_serial=device_serial), limit=_LATEST, seconds=_LOOKING
    )
    certificate = x509.load_pem_x509_certificate(device.device_certificate.encode())
    current = find_current(connection, device)
    grace = timedelta(days=authority.settings.renewal_grace_days)
    return {
        "device": device,
        "device_acts": list_acts(device.status),
        "certificate": CertificateView.of("device", certificate, now),
        "chain": [
            CertificateView.of(name, x509.load_pem_x509_certificate(pem.encode()), now)
            for name, pem in zip(
                ("intermediate", "root"), _chain_of(authority, device), strict=False
            )
        ],
        "revocation": current.revocation,
        "earlier": certificates_store.list_earlier(connection, device_serial),
        "re_enrolment": re_enrolments.find(connection, device_serial, now),
        "now": now,
        "window": find_window(connection, device),
        "obstacle": find_obstacle(current, now, grace),
        "grace": grace,
        "acts": act_search.search(
            connection,
            ActFilter(subject=device_serial, subject_kind=_KIND),
            limit=_ACTS,
        ),
        "all_acts": link(ACTS, {"subject": device_serial, "kind": _KIND}),
        "flags": device_flags.list_flags_of_device(connection, device_serial, limit=_FLAGS),
        "days": [(day, passes.get(day, 0)) for day in days],
        "active_days": [
            (link(VALIDATIONS, {"device": device_serial, **_whole_day(day)}), day, passes[day])
            for day in sorted(passes, reverse=True)
        ],
        "most_passes": max(passes.values(), default=0),
        "passes": sum(passes.values()),
        "rows": history.rows,
        "looked_back_to": history.looked_back_to,
        "has_older": history.older is not None,
        "download": link(CERTIFICATE, {"serial": device_serial}),
        "validations": link(VALIDATIONS, {"device": device_serial}),
    }


def _chain_of(authority: Authority, device: Device) -> tuple[str, ...]:
    """Return the certificates (PEM) of the device's issuer and its root.

    A name that no CA has, which only an operator's own SQL can write, has no chain.
    """
    issuer = authority.issuers.issuer(device.certificate_issuer)
    return () if issuer is None else issuer.chain


def _whole_day(day: date) -> dict[str, str]:
    begins = datetime(day.year, day.month, day.day, tzinfo=UTC)
    since, until = (each.replace(tzinfo=None) for each in (begins, begins + timedelta(days=1)))
    return {"since": since.isoformat(), "until": until.isoformat()}
