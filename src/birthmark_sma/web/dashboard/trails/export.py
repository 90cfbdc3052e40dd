"""Stream an export of a trail in pieces, as a file to download.

Called by the pages of the audit log and of the acts. Each piece is read in a transaction of its
own. So the memory of an export is bounded, and it never blocks the database or other pages. All
exports of a process share one lock and together use at most a third of one thread's time, because
validations have priority.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from enum import StrEnum
from typing import TypeAlias, TypeVar

from sqlalchemy import Connection
from starlette.responses import StreamingResponse

from birthmark_sma.web.middleware.timeouts import run_with_timeout
from birthmark_sma.web.query_params import parse_choice
from birthmark_sma.web.server_state import ApiRequest

_SECONDS = 30.0  # for one piece
_RESTS = 2.0
"""Pause of all exports after a piece, as a multiple of the time that the piece took."""

_Place = TypeVar("_Place")
ReadPiece: TypeAlias = Callable[[Connection, _Place], tuple[str, _Place | None]]
"""Returns the text of the piece at a place, and the place of the next one, or None at the end."""


class Serials(StrEnum):
    """The values of the parameter `serials` of an export."""

    YES = "yes"
    NO = "no"


def parse_serials(request: ApiRequest) -> bool:
    """Return True if the export names devices: unless the request or its access key forbids it.

    Raises RequestError for an invalid value.
    """
    asked = parse_choice(request, "serials", Serials)
    caller = request.context.caller
    return asked is not Serials.NO and (caller is None or caller.may_read_serials)


def stream_export(
    request: ApiRequest,
    read: ReadPiece[_Place],
    first: _Place,
    *,
    file_name: str,
    media_type: str,
    head: str = "",
) -> StreamingResponse:
    """Return a response that streams `head` and all pieces from the place `first` on."""
    return StreamingResponse(
        _pieces(request, read, first, head),
        headers={"Content-Disposition": f'attachment; filename="{file_name}"'},
        media_type=f"{media_type}; charset=utf-8",
    )


async def _pieces(
    request: ApiRequest, read: ReadPiece[_Place], first: _Place, head: str
) -> AsyncIterator[str]:
    """Yield the export in pieces. Read each piece after the client has taken the one before it.

    A slow client holds neither the lock nor a transaction while it reads.
    """
    database = request.server.authority.database
    turn = request.server.exporting
    yield head
    place: _Place | None = first
    while place is not None:

        def read_piece(place: _Place = place) -> tuple[str, _Place | None]:
            # The text is formatted in the thread, too: the event loop has to answer validations.
            with database.read() as connection:
                return read(connection, place)

        async with turn:
            began = time.monotonic()
            text, place = await run_with_timeout(request.server.slow, read_piece, _SECONDS)
            if place is not None:
                # While holding the lock, so that the pause applies to all exports.
                await asyncio.sleep(_RESTS * (time.monotonic() - began))
        if text:
            yield text
