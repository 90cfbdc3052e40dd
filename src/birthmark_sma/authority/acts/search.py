"""Find administrative acts: one page at a time, newest first, and all of them for an export.

Called by `sma acts`, the dashboard and whoever shows the acts on a device. The newest act has the
highest id: acts are numbered in the order in which they were recorded, whatever the clock said. So
the id of the last act of a page is the cursor for the next one. This module must never change acts.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Connection, Row, func, select, union_all

from birthmark_sma.authority.acts.actor import ActKind, Source
from birthmark_sma.authority.acts.trail import Facts, Subject
from birthmark_sma.errors import UnknownActError
from birthmark_sma.storage.engine import Database
from birthmark_sma.storage.schema.acts import act_subjects, administrative_acts

_A_PIECE = 1_000  # subjects of an export that one transaction reads
_ACTS_OF_A_PIECE = 100  # fewer, because each may have subjects
_LATEST = 1_000  # acts in which that of a request is looked for

_DEVICE = ActKind.DEVICE_SUSPEND.subject_kind
_SEARCHED = "begins"  # of `criteria`: DeviceFilter has it
_CERTIFICATE = "certificate_serial"  # the fact that names a device, beside the subject

_acts = administrative_acts.c
_subjects = act_subjects.c


@dataclass(frozen=True, slots=True)
class ActFilter:
    """The acts to search for. None means no restriction.

    Acts are from `since` on, and before `until`. `subject` is the whole name of a device, access
    key, table or CA, as it is registered; `subject_kind` says which of these. `request_id` is that
    of the response to the request.
    """

    act: ActKind | None = None
    actor: str | None = None
    source: Source | None = None
    request_id: str | None = None
    subject: str | None = None
    subject_kind: str | None = None
    since: datetime | None = None
    until: datetime | None = None


@dataclass(frozen=True, slots=True)
class RecordedAct:
    """An act as it is stored. `act` may be of a newer program, so it is a text.

    `subject`, `before` and `after` are None if there are several subjects: `list_subjects` has
    them. `more` has further facts about the act.
    """

    id: int
    acted_at: datetime
    act: str
    actor: str
    role: str | None
    source: str
    request_id: str | None
    subject_kind: str
    subject: str | None
    subjects: int
    reason: str | None
    before: Facts | None
    after: Facts | None
    more: Facts

    @property
    def subject_name(self) -> str | None:
        """Return the name that operators gave to the subject, if its id is another: a key's."""
        name = (self.after or {}).get("name")
        return None if name is None else str(name)


class Place(NamedTuple):
    """A place in an export: before an act, or among the subjects of the act `act_id`.

    With `nameless` these subjects are devices, and the export has no serials.
    """

    before: int | None = None
    act_id: int | None = None
    after: str = ""
    nameless: bool = False


def search(
    connection: Connection, wanted: ActFilter, *, limit: int, before: int | None = None
) -> list[RecordedAct]:
    """Return up to `limit` matching acts, newest first, with ids below `before`."""
    conditions = _conditions(wanted)
    if before is not None:
        conditions.append(_acts.id < before)
    query = select(administrative_acts).where(*conditions).order_by(_acts.id.desc()).limit(limit)
    return [_recorded(row) for row in connection.execute(query)]


def find(connection: Connection, act_id: int) -> RecordedAct:
    """Return the act with this id. Raises UnknownActError."""
    row = connection.execute(select(administrative_acts).where(_acts.id == act_id)).one_or_none()
    if row is None:
        raise UnknownActError(f"There is no act {act_id}. To see them, type: sma acts list")
    return _recorded(row)


def find_by_request(connection: Connection, request_id: str) -> RecordedAct | None:
    """Return the newest act of a request, or None if it is not among the latest acts.

    Ask right after the act: request ids have no index, so this looks at the latest acts alone.
    """
    newest = select(func.max(_acts.id)).scalar_subquery()
    query = (
        select(administrative_acts)
        .where(_acts.id > newest - _LATEST, _acts.request_id == request_id)
        .order_by(_acts.id.desc())
        .limit(1)
    )
    row = connection.execute(query).one_or_none()
    return None if row is None else _recorded(row)


def list_subjects(
    connection: Connection, act_id: int, *, limit: int, after: str = ""
) -> list[Subject]:
    """Return up to `limit` subjects of an act that has several, sorted by name, after a name."""
    query = (
        select(_subjects.subject, _subjects.before, _subjects.after)
        .where(_subjects.act_id == act_id, _subjects.subject > after)
        .order_by(_subjects.subject)
        .limit(limit)
    )
    return [
        Subject(name, _decode(before), _decode(after))
        for name, before, after in connection.execute(query)
    ]


def export(
    database: Database, wanted: ActFilter, *, serials: bool = True
) -> Iterator[dict[str, Any]]:
    """Yield the matching acts, newest first, as objects for JSON; see `read_piece`.

    Each piece is a transaction of its own, so an export of any size blocks nothing. Acts that are
    recorded meanwhile are left out.
    """
    place: Place | None = Place()
    while place is not None:
        with database.read() as connection:
            found, place = read_piece(connection, wanted, place, serials=serials)
        yield from found


def read_piece(
    connection: Connection, wanted: ActFilter, place: Place, *, serials: bool = True
) -> tuple[list[dict[str, Any]], Place | None]:
    """Return a piece of an export, and the place of the next one or None.

    An act with several subjects is followed by one object for each of them, with `act_id`. Without
    `serials` no device is named: `subject` is None, and facts with serial numbers are left out.
    """
    if place.act_id is not None:
        subjects = list_subjects(connection, place.act_id, limit=_A_PIECE, after=place.after)
        rows = [
            {"act_id": place.act_id, "subject": e.name, "before": e.before, "after": e.after}
            for e in subjects
        ]
        if place.nameless:
            rows = [leave_out_serials(each) for each in rows]
        is_last = len(subjects) < _A_PIECE
        after = "" if is_last else str(subjects[-1].name)
        following = place._replace(act_id=None if is_last else place.act_id, after=after)
        return rows, following
    acts = search(connection, wanted, limit=_ACTS_OF_A_PIECE, before=place.before)
    rows = []
    for each in acts:
        is_nameless = not serials and names_devices(each.subject_kind)
        rows.append(leave_out_serials(asdict(each)) if is_nameless else asdict(each))
        if each.subjects > 1:
            return rows, Place(each.id, each.id, nameless=is_nameless)
    return rows, Place(acts[-1].id) if len(acts) == _ACTS_OF_A_PIECE else None


def _conditions(wanted: ActFilter) -> list[ColumnElement[bool]]:
    equal = {
        _acts.act: None if wanted.act is None else wanted.act.value,
        _acts.actor: wanted.actor,
        _acts.source: None if wanted.source is None else wanted.source.value,
        _acts.request_id: wanted.request_id,
        _acts.subject_kind: wanted.subject_kind,
    }
    conditions = [column == value for column, value in equal.items() if value is not None]
    if wanted.subject is not None:
        # Two look-ups by index. One condition with OR would read the whole trail.
        alone = select(_acts.id).where(_acts.subject == wanted.subject)
        among = select(_subjects.act_id).where(_subjects.subject == wanted.subject)
        conditions.append(_acts.id.in_(union_all(alone, among)))
    if wanted.since is not None:
        conditions.append(_acts.acted_at >= wanted.since)
    if wanted.until is not None:
        conditions.append(_acts.acted_at < wanted.until)
    return conditions


def names_devices(subject_kind: str) -> bool:
    """Return True if the subjects of an act are devices."""
    return subject_kind == _DEVICE


def leave_out_serials(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row of an export, whose subject is a device, without what names the device."""
    facts = {name: row[name] for name in ("before", "after") if row[name] is not None}
    nameless = {
        name: {fact: value for fact, value in each.items() if fact != _CERTIFICATE}
        for name, each in facts.items()
    }
    if "more" in row:
        nameless["more"] = {name: _without_search(each) for name, each in row["more"].items()}
    return row | nameless | {"subject": None}


def _without_search(fact: Any) -> Any:
    """Return a fact without the text by which an operator searched for the devices.

    It is the beginning of serials, and often a whole one.
    """
    if not isinstance(fact, dict):
        return fact
    return {name: value for name, value in fact.items() if name != _SEARCHED}


def _recorded(row: Row[Any]) -> RecordedAct:
    values = row._asdict()
    details = json.loads(values.pop("details"))
    before, after = details.pop("before", None), details.pop("after", None)
    return RecordedAct(**values, before=before, after=after, more=details)


def _decode(facts: str | None) -> Facts | None:
    return None if facts is None else json.loads(facts)
