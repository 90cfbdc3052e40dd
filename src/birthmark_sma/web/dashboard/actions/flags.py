"""Dashboard pages of abuse flags: list them, and mark one or several as reviewed.

`authority/background/abuse_detection.py` does the review. It changes no status: a suspended device
stays suspended.
"""

from datetime import date
from enum import StrEnum
from typing import Any, NamedTuple

from fastapi import APIRouter
from sqlalchemy import Connection
from starlette.responses import Response

from birthmark_sma.authority.acts.actor import ActKind
from birthmark_sma.authority.background.abuse_detection import review_several
from birthmark_sma.authority.devices import abuse_flags
from birthmark_sma.authority.devices.abuse_flags import Flag
from birthmark_sma.web.dashboard import rendering
from birthmark_sma.web.dashboard.actions.performing import (
    find_act,
    find_actor,
    find_earlier,
    perform,
    show_act,
)
from birthmark_sma.web.dashboard.forms import read_session_form
from birthmark_sma.web.dashboard.rendering import render_page
from birthmark_sma.web.query_params import (
    Source,
    parse_choice,
    parse_name,
    parse_names,
    parse_text,
    refused,
)
from birthmark_sma.web.routes import FLAG_PAGE, FLAG_REVIEW
from birthmark_sma.web.server_state import ApiRequest

_LISTED = 80  # flags of the page: a form has at most 96 fields

router = APIRouter(include_in_schema=False)


class Shown(StrEnum):
    """The flags that the list shows."""

    OPEN = "open"
    ALL = "all"
    SHADOW = "shadow"


class ChosenFlag(NamedTuple):
    """A flag that the operator has chosen, by its device and its day (UTC)."""

    device_serial: str
    day: date

    @property
    def text(self) -> str:
        """Return the flag as the value of a field of a form."""
        return f"{self.day} {self.device_serial}"

    @classmethod
    def parse(cls, text: str) -> "ChosenFlag":
        """Return the flag of a field. Raises RequestError."""
        day, _, serial = text.partition(" ")
        try:
            return cls(serial, date.fromisoformat(day))
        except ValueError:
            raise refused("flag is a day and a serial, as the list of flags has it.") from None


async def list_flags(request: ApiRequest) -> Response:
    """Show up to 80 abuse flags, the latest day first."""
    shown = parse_choice(request, "show", Shown) or Shown.OPEN

    def read(connection: Connection) -> dict[str, Any]:
        total, found = abuse_flags.list_flags(
            connection,
            shadow=shown is Shown.SHADOW,
            reviewed=shown is not Shown.OPEN,
            limit=_LISTED,
        )
        return {"shown": shown, "choices": list(Shown), "total": total, "flags": found}

    return await render_page(request, "actions/flags.html", read)


async def show_review(request: ApiRequest) -> Response:
    """Show the open flags of a device, and ask for confirmation."""
    serial = parse_name(request, "serial")
    if serial is None:
        raise refused("serial names the device.")
    return await perform(request, lambda: _show(request, _open_of(request, serial)))


async def review(request: ApiRequest) -> Response:
    """Mark the chosen flags as reviewed, as the operator has confirmed.

    Raises RequestError if the form comes from another site.
    """
    form = await read_session_form(request)
    chosen = _parse_flags(form)
    is_confirmed = parse_text(form, "confirmed") is not None

    def work() -> Response:
        database = request.server.authority.database
        if not is_confirmed:
            return _show(request, chosen)
        reviewed = review_several(database, chosen, find_actor(request))
        with database.read() as connection:
            if reviewed:
                return show_act(find_act(connection, request))
            serial = chosen[0].device_serial
            done = find_earlier(connection, request, ActKind.DEVICE_REVIEW_FLAGS, serial)
        return show_act(done) if done else _show(request, chosen)

    return await perform(request, work)


router.add_api_route(FLAG_PAGE.path, list_flags, methods=["GET"])
router.add_api_route(FLAG_REVIEW.path, show_review, methods=["GET"])
router.add_api_route(FLAG_REVIEW.path, review, methods=["POST"])


def _parse_flags(source: Source) -> list[ChosenFlag]:
    chosen = [ChosenFlag.parse(each) for each in dict.fromkeys(parse_names(source, "flag"))]
    if not chosen:
        raise refused("Choose at least one flag.")
    return chosen


def _open_of(request: ApiRequest, serial: str) -> list[ChosenFlag]:
    with request.server.authority.database.read() as connection:
        found = abuse_flags.list_flags_of_device(connection, serial, limit=_LISTED)
    return [ChosenFlag(e.device_serial, e.day) for e in found if e.reviewed_at is None]


def _show(request: ApiRequest, chosen: list[ChosenFlag]) -> Response:
    """Return the page that asks for confirmation. It names those of `chosen` that are open."""
    waiting: list[tuple[ChosenFlag, Flag]] = []
    with request.server.authority.database.read() as connection:
        for each in chosen:
            found = abuse_flags.list_flags_of_device(connection, each.device_serial, limit=_LISTED)
            waiting += [(each, f) for f in found if f.day == each.day and f.reviewed_at is None]
    html = rendering.render(request, "actions/flag_review.html", waiting=waiting)
    return rendering.html_response(html, 200 if waiting else 409)
