"""Dashboard page "Key tables": the number of devices of each table, and how much it is used.

The devices that share a table are the anonymity set of a camera token.
"""

import math
from collections.abc import Callable, Sequence
from enum import StrEnum
from statistics import median
from typing import Any, NamedTuple

from fastapi import APIRouter
from sqlalchemy import Connection
from starlette.responses import Response

from birthmark_sma.authority.key_tables import usage_store
from birthmark_sma.authority.key_tables.epochs import list_states
from birthmark_sma.authority.key_tables.usage_store import TableFigures
from birthmark_sma.counts import counted
from birthmark_sma.web.dashboard.rendering import render_page
from birthmark_sma.web.query_params import parse_choice, parse_number
from birthmark_sma.web.server_state import ApiRequest

_MOST_CELLS = 10_000
_LISTED = 10
_FAINTEST = 0.06  # opacity of the smallest value; 0 would make a table invisible
_CELL = 10  # SVG units

router = APIRouter(include_in_schema=False)


class Measure(StrEnum):
    """The value that the heat map shows for each table."""

    DEVICES = "devices"
    USE = "use"


_OF: dict[Measure, Callable[[TableFigures], int]] = {
    Measure.DEVICES: lambda each: each.devices,
    Measure.USE: lambda each: each.tokens,
}


class Cell(NamedTuple):
    """A table in the heat map: position in SVG units, colour strength (0 to 1), and tooltip."""

    x: int
    y: int
    strength: float
    told: str


@router.get("/dashboard/tables")
async def show_tables(request: ApiRequest) -> Response:
    """Show all key tables as a heat map, and one selected table as text."""
    by = parse_choice(request, "by", Measure) or Measure.DEVICES
    chosen = parse_number(request, "table")
    return await render_page(
        request, "tables.html", lambda connection: _read(connection, by, chosen)
    )


def _read(connection: Connection, by: Measure, chosen: int | None) -> dict[str, Any]:
    tables = usage_store.list_figures(connection)
    counting = usage_store.find_counting(connection)
    states = list_states(connection)
    inhabited = [each for each in tables if each.devices]
    values = [_OF[by](each) for each in tables]
    columns = math.ceil(math.sqrt(min(len(tables), _MOST_CELLS))) or 1
    return {
        "by": by,
        "tables": len(tables),
        "cells": _cells(tables[:_MOST_CELLS], by, columns),
        "columns": columns,
        "rows": math.ceil(min(len(tables), _MOST_CELLS) / columns),
        "least": min(values, default=0),
        "most": max(values, default=0),
        "counting": counting,
        "smallest": sorted(inhabited, key=lambda each: each.devices)[:_LISTED],
        "busiest": sorted(
            (each for each in tables if each.tokens), key=lambda each: each.tokens, reverse=True
        )[:_LISTED],
        "middle": round(median(each.devices for each in inhabited)) if inhabited else 0,
        "empty": len(tables) - len(inhabited),
        "asked_for": chosen,
        "chosen": next((each for each in tables if each.table_id == chosen), None),
        "state": next((each for each in states if each.table_id == chosen), None),
        "overlaps": [each for each in states if each.accepted_until is not None],
    }


def _cells(tables: Sequence[TableFigures], by: Measure, columns: int) -> list[Cell]:
    """Return the cells, row by row. The strength is linear from the least to the greatest value."""
    values = [_OF[by](each) for each in tables]
    least, most = min(values, default=0), max(values, default=0)
    span = most - least
    return [
        Cell(
            place % columns * _CELL,
            place // columns * _CELL,
            round(_FAINTEST + (1 - _FAINTEST) * (value - least) / span, 2) if span else _FAINTEST,
            f"Table {each.table_id}: {counted(each.devices, 'device')},"
            f" {counted(each.tokens, 'token')}",
        )
        for place, (each, value) in enumerate(zip(tables, values, strict=True))
    ]
