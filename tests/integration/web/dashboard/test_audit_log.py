"""The audit trail in a browser: filters, pages and exports."""

import csv
import io
import json
import re
from datetime import UTC, datetime
from html import unescape

import httpx2
import pytest

from birthmark_sma.authority.validation.records import AuditRow
from tests.integration.web.dashboard.conftest import PAGE
from tests.integration.web.dashboard.test_rendering import assert_strict
from tests.support.audit_rows import AuditWriter
from tests.support.cameras.camera import VALIDATE, Camera, wire
from tests.support.programs.running import (
    Running,
    Servers,
    new_serial,
    resident_megabytes,
    wait_until,
)

LIST = "/dashboard/validations"


def validated(client: httpx2.Client, serial: str, times: int) -> Camera:
    """A camera whose tokens were validated, as many."""
    camera = Camera.provisioned(client, serial)
    for _ in range(times):
        assert client.post(VALIDATE, json=wire(camera.token())).status_code == 200
    return camera


def every_row(client: httpx2.Client, **query: str) -> list[str]:
    """The times of all rows, page by page."""
    page = client.get(LIST, params=query)
    found: list[str] = []
    while True:
        assert page.status_code == 200, page.text
        found += re.findall(r"<tr><td><a href=\"[^\"]+\"><time datetime=\"([^\"]+)\"", page.text)
        following = re.search(r'rel="next" href="([^"]+)"', page.text)
        if following is None:
            return found
        page = client.get(unescape(following.group(1)))


def test_pages_and_filters(running: Running) -> None:
    serial = new_serial()
    with running.client(headers=PAGE) as client:
        camera = validated(client, serial, 70)
        token = wire(camera.token())
        client.post(VALIDATE, json=token)
        client.post(VALIDATE, json=token)
        assert len(every_row(client, device=serial)) == 72
        assert len(every_row(client, device=serial, result="PASS")) == 72
        assert every_row(client, device=serial, result="FAIL") == []
        assert len(every_row(client, device=serial, repeat="replayed")) == 1
        assert len(every_row(client, device=serial, caller="127.0.0.1")) == 72
        assert every_row(client, device=serial, until="2020-01-01T00:00") == []
        assert len(every_row(client, device=serial, since="2020-01-01T00:00")) == 72
        page = client.get(LIST, params={"device": serial, "reason": "genuine"})
        assert_strict(page)
        assert '<option value="genuine" selected>' in page.text
        assert f'value="{serial}"' in page.text


def test_a_request_and_a_token_are_found(running: Running) -> None:
    """And one validation opens, with the words for its reason and the other submissions."""
    named = {"X-Request-ID": f"+{new_serial()}".replace(" ", "-")}
    with running.client(headers=PAGE) as client:
        camera = Camera.provisioned(client, new_serial())
        body = {"tokens": [wire(camera.token(key_index=n)) for n in range(3)]}
        client.post(f"{VALIDATE}/batch", json=body, headers=named)
        client.post(f"{VALIDATE}", json=body["tokens"][1])
        request_id = named["X-Request-ID"]
        assert len(every_row(client, request_id=request_id)) == 3
        assert len(every_row(client, request_id=request_id, result="FAIL")) == 0
        page = client.get(LIST, params={"request_id": request_id})
        links = re.findall(r'<tr><td><a href="([^"]+)"', page.text)
        one = client.get(unescape(links[1]))
        assert one.status_code == 200
        assert_strict(one)
        for text in (
            request_id,
            camera.serial,
            "element 1 of a batch",
            "Nothing needs to be done.",
        ):
            assert text in one.text
        assert "1 time, last" in one.text
        found = re.search(r'href="([^"]*token_digest=([0-9a-f]{32}))"', one.text)
        assert found is not None
        assert len(every_row(client, token_digest=found[2])) == 2
        assert len(every_row(client, token_digest=found[2].upper(), repeat="replayed")) == 1
        exported = client.get(f"{LIST}.jsonl", params={"request_id": request_id}).text
        rows = [json.loads(line) for line in exported.splitlines()]
        assert [row["batch_position"] for row in rows] == [2, 1, 0]
        assert rows[1]["token_digest"] == found[2]
        table = client.get(f"{LIST}.csv", params={"request_id": request_id}).text
        assert {row["request_id"] for row in csv.DictReader(io.StringIO(table))} == {
            f"'{request_id}"
        }, "no formula"


def test_a_validation_that_is_not_there(running_on_sqlite: Running) -> None:
    """Retention may have deleted it since the page was opened."""
    with running_on_sqlite.client(headers=PAGE) as client:
        place = "2020-01-01T00:00:00+00:00_1"
        gone = client.get("/dashboard/validation", params={"at": place})
        assert gone.status_code == 404
        assert "no such validation" in gone.text
        for query in ({}, {"at": "x"}, {"at": "2020-01-01T00:00:00_1"}):
            assert client.get("/dashboard/validation", params=query).status_code == 422


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\uff1d", "\uff20"])
def test_no_serial_is_a_formula(running_on_sqlite: Running, start: str) -> None:
    """In a spreadsheet: neither what begins with these signs, nor with those of full width."""
    serial = f"{start}cmd|' /C calc'!A0 {new_serial('')}"
    with running_on_sqlite.client(headers=PAGE) as client:
        validated(client, serial, 1)
        answer = client.get(f"{LIST}.csv", params={"device": serial})
        [row] = csv.DictReader(io.StringIO(answer.text))
        assert row["device_serial"] == f"'{serial}"


@pytest.mark.parametrize(
    "query",
    [
        {"result": "MAYBE"},
        {"table": "-1"},
        {"table": "9" * 30},
        {"table": "\u0661"},
        {"since": "yesterday"},
        {"since": "0001-01-01T00:00+14:00"},
        {"before": "2026-01-01T00:00:00_1"},
        {"before": "x"},
        {"range": "2h"},
        {"request_id": "x" * 129},
        {"token_digest": "00" * 15},
        {"token_digest": "0x" + "00" * 15},
        {"token_digest": "\u0661" * 32},
        {"before": "0001-01-01T00:00:00+23:59_5"},
        {"before": "9999-12-31T23:59:59-23:59_5"},
        {"before": "2026-01-01T00:00:00+00:00_" + "9" * 40},
    ],
)
@pytest.mark.parametrize("path", [LIST, f"{LIST}.csv"])
def test_what_cannot_be_meant_is_told(
    running_on_sqlite: Running, path: str, query: dict[str, str]
) -> None:
    with running_on_sqlite.client(headers=PAGE) as client:
        ignored = path.endswith("csv") and "before" in query
        assert client.get(path, params=query).status_code == (200 if ignored else 422)


def test_exports_have_every_row(running: Running) -> None:
    serial = '=HYPERLINK("x"),' + new_serial()
    with running.client(headers=PAGE) as client:
        validated(client, serial, 5)
        answer = client.get(f"{LIST}.csv", params={"device": serial})
        assert answer.headers["content-type"] == "text/csv; charset=utf-8"
        assert answer.headers["content-disposition"].startswith("attachment;")
        rows = list(csv.DictReader(io.StringIO(answer.text)))
        assert [row["reason"] for row in rows] == ["genuine"] * 5
        assert {row["device_serial"] for row in rows} == {"'" + serial}, "no formula"
        lines = client.get(f"{LIST}.jsonl", params={"device": serial}).text.splitlines()
        told = [json.loads(line) for line in lines]
        assert [row["device_serial"] for row in told] == [serial] * 5
        assert [str(row["id"]) for row in told] == [row["id"] for row in rows]
        assert "encrypted_nuc_hash" not in told[0]
        for row, line in zip(rows, told, strict=True):
            assert row["validated_at"] == line["validated_at"]
            assert line["validated_at"].endswith("Z"), "RFC 3339, as everywhere in the API"
        everything = client.get(f"{LIST}.jsonl").text.splitlines()
        assert len(everything) == running.count("validation_history")


def test_exports_without_serials_name_no_device(running: Running) -> None:
    serial = new_serial("secret")
    with running.client(headers=PAGE) as client:
        validated(client, serial, 2)
        page = client.get(LIST, params={"device": serial}).text
        links = [unescape(each) for each in re.findall(r'href="([^"]+)" download', page)]
        [url] = [each for each in links if "serials=no" in each]
        for path in (url, url.replace(".csv", ".jsonl")):
            exported = client.get(path).text
            assert exported.count("genuine") == 2, "the filter may name a device"
            assert serial not in exported
        assert "device_serial" in client.get(url).text, "the columns stay"
        assert client.get(f"{LIST}.csv", params={"serials": "maybe"}).status_code == 422


def test_a_large_export_streams(running: Running) -> None:
    """It begins at once, takes little memory, and may be left at any time."""
    rows = 60_000
    _append(running, rows)
    with running.client(headers=PAGE) as client:
        before = resident_megabytes(running.server.process.pid)
        got = 0
        with client.stream("GET", f"{LIST}.csv", params={"caller": "export"}) as answer:
            for line in answer.iter_lines():
                got += line.count("export")
        assert got == rows
        assert resident_megabytes(running.server.process.pid) - before < 30
        with client.stream("GET", f"{LIST}.csv", params={"caller": "export"}) as answer:
            next(answer.iter_lines())
        assert client.get("/dashboard").status_code == 200


def test_exports_that_are_left_hold_nothing(servers: Servers) -> None:
    """More of them than there are threads; then the database has nobody at work for them."""
    running = servers.get("postgresql")
    _append(running, 60_000)
    with running.client(headers=PAGE) as client:
        for _ in range(6):
            with client.stream("GET", f"{LIST}.csv", params={"caller": "export"}) as answer:
                next(answer.iter_lines())
        wait_until(lambda: not _at_work(running), 5)
        rest = client.get(f"{LIST}.csv", params={"caller": "nobody"})
        assert rest.text.count("\n") == 1, "nor do they keep others from their turn"
        assert client.get("/dashboard").status_code == 200


def _at_work(running: Running) -> list[tuple[object, ...]]:
    """What others do in the database, or have left open, that reads the audit trail."""
    return running.rows(
        "SELECT state, query FROM pg_stat_activity WHERE datname = current_database()"
        " AND pid <> pg_backend_pid() AND state <> 'idle'"
        " AND strpos(query, 'validation_history') > 0 AND strpos(query, 'SELECT') = 1"
    )


def _append(running: Running, rows: int) -> None:
    """Write rows as a server would have, a thousand at a time."""
    trail = AuditWriter()
    now = datetime.now(UTC)
    row = AuditRow(b"", 1, 1, "FAIL", "not_opened", None, now, None, "export")
    with running.database() as database:
        for _ in range(rows // 1_000):
            with database.write() as transaction:
                trail.write(transaction, [row] * 1_000)
