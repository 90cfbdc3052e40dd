"""The trail of acts: in the transaction of the act, found by every filter, whole in an export."""

import json
import threading
import time
from datetime import timedelta

import pytest
from sqlalchemy import Connection, text

from birthmark_sma.authority.access.keys import KeyTerms, create_key
from birthmark_sma.authority.access.store import KeyScope
from birthmark_sma.authority.acts import search, trail
from birthmark_sma.authority.acts.actor import ActKind, Actor, Source
from birthmark_sma.authority.acts.search import ActFilter, RecordedAct
from birthmark_sma.authority.acts.trail import Subject
from birthmark_sma.authority.authority import Authority
from birthmark_sma.authority.devices import states
from birthmark_sma.authority.devices import store as device_store
from birthmark_sma.authority.devices.revocation import DeviceCriteria, change_devices
from birthmark_sma.config import Settings
from birthmark_sma.errors import DatabaseUnavailableError, UnknownActError
from birthmark_sma.storage.engine import Database
from tests.support.authorities import execute, opened, rows_of
from tests.support.devices.actors import ACTOR
from tests.support.devices.registered import device
from tests.support.soak import tell

REMOTE = Actor("olga", Source.API, role="operate", request_id="req-1")


def register(authority: Authority, number: int) -> list[str]:
    """Register devices; return their serials."""
    new = [device(each) for each in range(1, number + 1)]
    with authority.database.write() as transaction:
        device_store.add_devices(transaction, new)
    return [each.device_serial for each in new]


def find(database: Database, **wanted: object) -> list[RecordedAct]:
    """Return the acts that match a filter, newest first."""
    with database.read() as connection:
        return search.search(connection, ActFilter(**wanted), limit=1_000)  # type: ignore[arg-type]


def add(database: Database, number: int) -> None:
    """Record acts on CAs that do not exist."""

    def work(transaction: Connection) -> None:
        for each in range(number):
            subject = Subject(f"ca-{each}", {"state": "active"}, {"state": "retired"})
            trail.record(transaction, REMOTE, ActKind.CA_ROTATE, [subject], more={"n": each})

    database.transact(work)


def test_who_suspended_this_device(authority: Authority) -> None:
    """One search finds acts on the device alone and among others, each with its state."""
    first, second, third = register(authority, 3)
    database = authority.database
    change_devices(database, [first], states.suspend(REMOTE))
    change_devices(database, DeviceCriteria(family="Test"), states.retire(ACTOR))
    retired, suspended = find(database, subject=first, subject_kind="device")
    assert (suspended.act, suspended.actor, suspended.source) == ("device.suspend", "olga", "api")
    assert (suspended.role, suspended.request_id) == ("operate", "req-1")
    assert suspended.reason == "certificate_hold"
    assert suspended.before == {"status": "active"}
    assert suspended.after == {"status": "suspended", "reason": "certificate_hold"}
    assert (retired.act, retired.subject, retired.subjects) == ("device.retire", None, 3)
    assert retired.more["criteria"]["family"] == "Test"
    with database.read() as connection:
        listed = search.list_subjects(connection, retired.id, limit=10)
        page = search.list_subjects(connection, retired.id, limit=10, after=second)
    assert [each.name for each in listed] == [first, second, third]
    assert [each.name for each in page] == [third]
    after = {"status": "retired", "reason": "cessation_of_operation"}
    assert [each.after for each in listed] == [after] * 3
    assert [each.before for each in listed] == [
        suspended.after,
        {"status": "active"},
        listed[2].before,
    ]
    assert find(database, subject=first, subject_kind="ca") == []


def test_the_act_of_a_request(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    """The newest of them, among the latest acts alone: request ids have no index."""
    [serial] = register(authority, 1)
    database = authority.database

    def found(request_id: str) -> RecordedAct | None:
        with database.read() as connection:
            return search.find_by_request(connection, request_id)

    assert found("req-1") is None
    change_devices(database, [serial], states.suspend(REMOTE))
    change_devices(database, [serial], states.reinstate(REMOTE))
    change_devices(database, [serial], states.retire(ACTOR))
    act = found("req-1")
    assert act is not None
    assert (act.act, act.subject) == ("device.reinstate", serial)
    assert found("req-2") is None
    monkeypatch.setattr(search, "_LATEST", 1)
    assert found("req-1") is None


def test_a_failed_act_leaves_none(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    """The record is in the transaction of the act, which fails at its very end."""
    serials = register(authority, 3)
    before = find(authority.database)

    def fail(_transaction: Connection) -> None:
        raise DatabaseUnavailableError

    monkeypatch.setattr(device_store, "await_verdicts", fail)
    with pytest.raises(DatabaseUnavailableError):
        change_devices(authority.database, serials, states.suspend(ACTOR))
    assert find(authority.database) == before
    assert rows_of(authority.database, "SELECT * FROM act_subjects") == []


def test_what_changes_nothing_leaves_none(authority: Authority) -> None:
    [serial] = register(authority, 1)
    change_devices(authority.database, [serial], states.suspend(ACTOR))
    before = find(authority.database)
    for wanted in ([serial], [serial, "nobody"], []):
        change_devices(authority.database, wanted, states.suspend(ACTOR))
    change_devices(authority.database, [serial], states.reinstate(ACTOR), dry_run=True)
    assert find(authority.database) == before


def test_ten_thousand_devices_in_one_act(authority: Authority) -> None:
    """Under ten seconds, with the name and both states of each."""
    register(authority, 10_000)
    began = time.monotonic()
    change_devices(authority.database, DeviceCriteria(family="Test"), states.suspend(ACTOR))
    took = time.monotonic() - began
    tell(f"{authority.database.dialect_name}: 10,000 devices suspended in {took:.2f} s")
    assert took < 10
    assert rows_of(authority.database, "SELECT count(*) FROM act_subjects") == [(10_000,)]
    exported = list(search.export(authority.database, ActFilter(act=ActKind.DEVICE_SUSPEND)))
    assert len(exported) == 10_001
    assert len({each["subject"] for each in exported[1:]}) == 10_000


def test_filters(authority: Authority) -> None:
    """Each alone, and together."""
    database = authority.database
    add(database, 3)
    create_key(database, KeyTerms("desk", KeyScope.VALIDATE), ACTOR)
    create, *rotations, first = find(database)
    assert (create.act, first.act) == ("access-key.create", "authority.create")
    assert find(database, act=ActKind.CA_ROTATE) == rotations
    assert find(database, source=Source.API) == rotations
    assert find(database, actor="olga") == rotations
    assert find(database, request_id="req-1") == rotations
    assert find(database, subject="ca-1") == [rotations[1]]
    assert find(database, subject="ca-1", actor="an operator") == []
    assert find(database, since=create.acted_at) == [create]
    assert find(database, until=create.acted_at) == [*rotations, first]
    assert rotations[0].more == {"n": 2}


def test_pages(authority: Authority) -> None:
    """Every act once, also if others are recorded between the pages."""
    database = authority.database
    add(database, 5)
    expected = [each.id for each in find(database)]
    seen: list[int] = []
    while len(seen) < len(expected):
        with database.read() as connection:
            page = search.search(
                connection, ActFilter(), limit=2, before=seen[-1] if seen else None
            )
        seen += [each.id for each in page]
        add(database, 1)
    assert seen == expected
    with database.read() as connection, pytest.raises(UnknownActError, match="sma acts list"):
        search.find(connection, 10**12)


def test_an_export_of_several_pieces(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    """Acts and subjects that end exactly where a piece ends are there once."""
    monkeypatch.setattr(search, "_A_PIECE", 4)
    monkeypatch.setattr(search, "_ACTS_OF_A_PIECE", 4)
    register(authority, 8)
    add(authority.database, 3)
    change_devices(authority.database, DeviceCriteria(family="Test"), states.suspend(ACTOR))
    add(authority.database, 4)
    exported = list(search.export(authority.database, ActFilter()))
    acts = [each["id"] for each in exported if "id" in each]
    assert acts == [each.id for each in find(authority.database)]
    assert [each["act"] for each in exported if "id" in each][4] == "device.suspend"
    subjects = [each["subject"] for each in exported[5:13]]
    assert len(set(subjects)) == 8
    assert {each["act_id"] for each in exported[5:13]} == {acts[4]}


def test_a_device_in_a_trail_of_many_acts(authority: Authority) -> None:
    """The search for a subject reads no more than its acts: by index on both databases."""
    add(authority.database, 2_000)
    [serial] = register(authority, 1)
    change_devices(authority.database, [serial], states.suspend(ACTOR))
    began = time.monotonic()
    assert len(find(authority.database, subject=serial)) == 1
    assert time.monotonic() - began < 1
    explain = "EXPLAIN QUERY PLAN " if authority.database.dialect_name == "sqlite" else "EXPLAIN "
    statement = (
        "SELECT * FROM administrative_acts WHERE id IN (SELECT id FROM administrative_acts WHERE"
        " subject = 'x' UNION ALL SELECT act_id FROM act_subjects WHERE subject = 'x')"
    )
    if authority.database.dialect_name == "postgresql":
        execute(authority.database, "ANALYZE")
    with authority.database.read() as connection:
        plan = "\n".join(str(row) for row in connection.execute(text(explain + statement)))
    assert "administrative_acts_subject_idx" in plan
    assert "Seq Scan on administrative_acts" not in plan


def test_two_acts_at_once(authority: Authority, settings: Settings) -> None:
    """Each process records its own, and the number of acts is that of the changes."""
    serials = register(authority, 20)

    def work(program: Authority, mine: list[str]) -> None:
        for serial in mine:
            change_devices(program.database, [serial], states.suspend(ACTOR))

    with opened(settings) as other:
        threads = [
            threading.Thread(target=work, args=[authority, serials[:10]]),
            threading.Thread(target=work, args=[other, serials[10:]]),
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    found = find(authority.database, act=ActKind.DEVICE_SUSPEND)
    assert sorted(str(each.subject) for each in found) == sorted(serials)


def test_hostile_names(authority: Authority) -> None:
    """Names from outside come back as they are."""
    name = "'; DROP TABLE act_subjects; -- <b>\u202e\N{GRINNING FACE}"
    actor = Actor(name, Source.COMMAND_LINE)
    subjects = [Subject(name, {"x": name}, {}), Subject("b" * 64, None, {"at": timedelta.max.days})]
    authority.database.transact(
        lambda transaction: trail.record(transaction, actor, ActKind.CA_ROTATE, subjects)
    )
    [act] = find(authority.database, actor=name)
    assert find(authority.database, subject=name) == [act]
    exported = list(search.export(authority.database, ActFilter(actor=name)))
    assert {"x": name} in [each["before"] for each in json.loads(json.dumps(exported[1:]))]


def test_without_the_trail_there_is_no_act(authority: Authority) -> None:
    """A table that is missing prevents the act."""
    [serial] = register(authority, 1)
    execute(authority.database, "ALTER TABLE administrative_acts RENAME TO gone")
    with pytest.raises(DatabaseUnavailableError, match="lacks a table"):
        change_devices(authority.database, [serial], states.suspend(ACTOR))
    execute(authority.database, "ALTER TABLE gone RENAME TO administrative_acts")
    status = "SELECT status FROM registered_devices"
    assert rows_of(authority.database, status) == [("active",)]


def test_an_export_without_serials_names_no_device(authority: Authority) -> None:
    """Neither alone nor among others. Other subjects, and all facts but certificates, stay."""
    serials = register(authority, 3)
    database = authority.database
    change_devices(database, serials, states.suspend(ACTOR))
    searched = {"begins": serials[0], "family": "Pi"}
    change_devices(database, serials[:1], states.reinstate(ACTOR), chosen_by=searched)
    facts = {"certificate_serial": "abc0123", "device_family": "Pi"}
    database.transact(
        lambda transaction: trail.record(
            transaction, ACTOR, ActKind.DEVICE_PROVISION, [Subject(serials[0], None, facts)]
        )
    )
    add(database, 1)
    rows = list(search.export(database, ActFilter(), serials=False))
    text = json.dumps(rows, default=str)
    assert not [each for each in (*serials, "abc0123") if each in text]
    assert "ca-0" in text
    assert {"criteria": {"family": "Pi"}} in [row.get("more") for row in rows]
    assert [row["after"] for row in rows if row.get("act") == "device.provision"] == [
        {"device_family": "Pi"}
    ]
    assert len([row for row in rows if "act_id" in row]) == 3
    assert len(rows) == len(list(search.export(database, ActFilter())))
    assert all(
        each in json.dumps(list(search.export(database, ActFilter())), default=str)
        for each in serials
    )
