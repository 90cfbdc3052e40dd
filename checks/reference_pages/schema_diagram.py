"""Draw the tables of the database as docs/schema.svg, with their keys and references."""

from collections.abc import Iterator
from html import escape
from itertools import chain

from sqlalchemy import Table

from checks.public_surface import places
from checks.reference_pages.schema_tables import type_name

GROUPS: dict[str, tuple[str, ...]] = {
    "Access and acts": (
        *("access_keys", "dashboard_sessions", "administrative_acts", "act_subjects"),
        *("audit_batches", "audit_checkpoints", "audit_keys"),
    ),
    "Authority and secrets": (
        *("authority", "key_encryption_keys", "ca_certificates", "key_tables"),
        *("earlier_table_keys", "key_table_figures", "key_table_counting"),
    ),
    "Devices": (
        *("registered_devices", "earlier_certificates", "re_enrolments", "renewal_orders"),
        *("revoked_certificates", "published_crls"),
        *("idempotent_responses", "device_family_counters"),
    ),
    "Activity": ("device_activity", "busiest_devices", "device_flags"),
    "Validations": (
        *("validation_history", "validation_counters", "running_totals", "sighted_tokens"),
        *("resubmitted_tokens", "lost_answers", "repeat_counters", "writer_commits"),
    ),
}
"""The columns of the diagram."""
LOGICAL = (
    ("act_subjects.act_id", "administrative_acts.id"),
    ("dashboard_sessions.key_id", "access_keys.key_id"),
    ("earlier_table_keys.table_id", "key_tables.table_id"),
    ("key_table_figures.table_id", "key_tables.table_id"),
    ("published_crls.issuer", "ca_certificates.name"),
    ("earlier_certificates.device_serial", "registered_devices.device_serial"),
    ("re_enrolments.device_serial", "registered_devices.device_serial"),
    ("revoked_certificates.device_serial", "registered_devices.device_serial"),
    ("device_activity.device_serial", "registered_devices.device_serial"),
    ("busiest_devices.device_serial", "registered_devices.device_serial"),
    ("device_flags.device_serial", "registered_devices.device_serial"),
    ("validation_history.device_serial", "registered_devices.device_serial"),
    ("resubmitted_tokens.digest", "sighted_tokens.digest"),
    ("lost_answers.digest", "sighted_tokens.digest"),
)
"""References that are not foreign keys: one would slow down each write."""

_WIDTH, _GAP, _ROW, _HEAD, _SPACE, _TOP = 272, 84, 17, 26, 26, 70
_STYLE = """
text { font: 12px system-ui, sans-serif; fill: #1b1f24 }
.group { font-size: 15px; font-weight: 600 }
.name { font-weight: 600; fill: #fff }
.key { font-weight: 600 }
.type { fill: #57606a; font-size: 11px; text-anchor: end }
.box { fill: #fff; stroke: #8c959f }
.head { fill: #24487a }
.line { fill: none; stroke: #b35900; stroke-width: 1.6 }
.logical { stroke: #57606a; stroke-dasharray: 4 3; stroke-width: 1.1 }
"""
_Place = tuple[float, float]


def render() -> str:
    """Return the diagram as SVG."""
    boxes, places_of_rows, height = "", {}, 0.0
    for number, (title, names) in enumerate(GROUPS.items()):
        left, top = _left(number), float(_TOP)
        boxes += f'<text class="group" x="{left}" y="{_TOP - 14}">{escape(title)}</text>\n'
        for name in names:
            of = places.schema.metadata.tables[name]
            boxes += _box(of, left, top)
            for row, column in enumerate(of.columns):
                y = top + _HEAD + _ROW * row + _ROW / 2
                places_of_rows[f"{name}.{column.name}"] = (float(left), y)
            top += _HEAD + _ROW * len(of.columns) + 6 + _SPACE
        height = max(height, top)
    lines = "".join(
        _line(places_of_rows[source], places_of_rows[target], logical=logical)
        for source, target, logical in list_references()
    )
    width = _left(len(GROUPS)) - _GAP + 60
    legend = (
        '<text x="40" y="26">Bold: primary key.  Solid line: foreign key.'
        "  Dashed line: the same value, without a foreign key.</text>\n"
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height:g}"'
        f' role="img" aria-label="The tables of the database">\n<style>{_STYLE}</style>\n'
        f'<rect width="{width}" height="{height:g}" fill="#f6f8fa"/>\n'
        f"{legend}{lines}{boxes}</svg>\n"
    )


def list_references() -> Iterator[tuple[str, str, bool]]:
    """Yield each reference as column, referenced column, and whether it is logical only."""
    for name in chain.from_iterable(GROUPS.values()):
        for column in places.schema.metadata.tables[name].columns:
            for key in column.foreign_keys:
                yield f"{name}.{column.name}", key.target_fullname, False
    for source, target in LOGICAL:
        yield source, target, True


def _left(number: int) -> int:
    return 60 + number * (_WIDTH + _GAP)


def _box(of: Table, left: float, top: float) -> str:
    height = _HEAD + _ROW * len(of.columns) + 6
    place = f'x="{left}" y="{top:g}" width="{_WIDTH}" rx="4"'
    text = f'<rect class="box" {place} height="{height}"/>\n'
    text += f'<rect class="head" {place} height="{_HEAD - 4}"/>\n'
    text += f'<text class="name" x="{left + 10}" y="{top + 16:g}">{escape(of.name)}</text>\n'
    for row, column in enumerate(of.columns):
        y = top + _HEAD + _ROW * row + _ROW / 2 + 4
        kind = ' class="key"' if column.primary_key else ""
        text += f'<text{kind} x="{left + 10}" y="{y:g}">{escape(column.name)}</text>'
        shown = escape(type_name(column).lower().replace(" with time zone", "tz"))
        text += f'<text class="type" x="{left + _WIDTH - 10}" y="{y:g}">{shown}</text>\n'
    return text


def _line(source: _Place, target: _Place, *, logical: bool) -> str:
    """Return a curve between two rows. Rows of one group are connected on their left side."""
    (x1, y1), (x2, y2) = source, target
    kind = "line logical" if logical else "line"
    if x1 == x2:
        bend = x1 - 24 - abs(y2 - y1) / 40
        path = f"M{x1:g} {y1:g} C{bend:g} {y1:g} {bend:g} {y2:g} {x2:g} {y2:g}"
    else:
        end = x2 + _WIDTH
        middle = (x1 + end) / 2
        path = f"M{x1:g} {y1:g} C{middle:g} {y1:g} {middle:g} {y2:g} {end:g} {y2:g}"
    return f'<path class="{kind}" d="{path}"/>\n'
