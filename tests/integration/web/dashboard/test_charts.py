"""The charts of verdicts: the time that they show, their zoom, and the same as a table."""

import itertools
import json
import re
from datetime import UTC, datetime, timedelta
from html import unescape

import httpx2
import pytest

from birthmark_sma.authority.validation.records import AuditRow, floor_to_minute
from birthmark_sma.protocol.verdict import Reason
from tests.integration.web.dashboard.conftest import PAGE
from tests.integration.web.dashboard.test_rendering import assert_strict
from tests.support.audit_rows import AuditWriter
from tests.support.programs.running import Running

OVERVIEW, VALIDATIONS = "/dashboard", "/dashboard/validations"
PAGES = (OVERVIEW, VALIDATIONS)
POINTS = {"1h": (60, 61), "6h": (360, 361), "24h": (145, 145), "7d": (169, 169), "30d": (721, 721)}


def record(running: Running, at: datetime, reason: Reason, times: int) -> None:
    """Write audit rows of a moment, as a server would have."""
    row = AuditRow(b"", 1, 1, reason.verdict.value, reason.value, None, at, None, "chart")
    with running.database() as database, database.write() as transaction:
        AuditWriter().write(transaction, [row] * times)


def curve(page: httpx2.Response) -> tuple[list[int], list[int], list[int]]:
    """Return times, PASSes and FAILs of the chart of a page."""
    assert page.status_code == 200, page.text
    found = re.search(r'data-curve="([^"]+)"', page.text)
    assert found is not None, page.text
    times, passes, fails = json.loads(unescape(found[1]))
    return times, passes, fails


def rows(page: httpx2.Response) -> list[tuple[str, int, int]]:
    """Return the table beside the chart: the link or text of each row, PASS and FAIL."""
    table = page.text.partition("<details>")[2].partition("</details>")[0]
    found = re.findall(
        r'<th scope="row">(.*?)</th><td class="n">([\d,]+)</td><td class="n">([\d,]+)</td>', table
    )
    return [
        (unescape(head), int(p.replace(",", "")), int(f.replace(",", ""))) for head, p, f in found
    ]


def began(head: str) -> datetime:
    """Return the time of a row of the table."""
    return datetime.fromisoformat(re.findall(r'datetime="([^"]+)"', head)[0])


def links(page: httpx2.Response) -> dict[str, str]:
    """Return the links that choose and move the time."""
    found = re.findall(r'<a href="([^"]+)"[^>]*>([\w ]+)</a>', page.text)
    return {text: unescape(url) for url, text in found}


@pytest.mark.parametrize("path", PAGES)
def test_a_range_is_in_the_url(running: Running, path: str) -> None:
    """Few points, however long it is; and the table has what the chart has."""
    with running.client(headers=PAGE) as client:
        for name, (least, most) in POINTS.items():
            page = client.get(path, params={"range": name})
            assert_strict(page)
            times, passes, fails = curve(page)
            assert least <= len(times) == len(passes) == len(fails) <= most, name
            assert len(set(itertools.pairwise(times))) == len(times) - 1
            assert "data-live" in page.text
            table = rows(page)
            assert 12 <= len(table) <= 32, name
            assert sum(p for _, p, _ in table) == sum(passes)
            assert sum(f for _, _, f in table) == sum(fails)


@pytest.mark.parametrize("path", PAGES)
def test_links_zoom_to_a_minute(running: Running, path: str) -> None:
    """By links alone, as with a keyboard: month, day, hour and minute of a burst."""
    burst = floor_to_minute(datetime.now(UTC)) - timedelta(days=20, minutes=7)
    record(running, burst + timedelta(seconds=1), Reason.NOT_OPENED, 300)
    with running.client(headers=PAGE) as client:
        page = client.get(path, params={"range": "30d"})
        for _ in range(6):
            head = next(head for head, _, _ in rows(page) if began(head) <= burst)
            url = re.search(r'href="([^"]+)"', head)
            if url is None:
                break
            page = client.get(url[1])
            assert "data-live" not in page.text
        times, _, fails = curve(page)
        assert times[1] - times[0] == 60
        assert fails[times.index(int(burst.timestamp()))] >= 300
        [row] = [row for row in rows(page) if began(row[0]) == burst]
        assert row[2] >= 300


def test_links_move_the_time(running_on_sqlite: Running) -> None:
    """Nothing leads into the future, and nothing is longer than 30 days."""
    with running_on_sqlite.client(headers=PAGE) as client:
        page = client.get(OVERVIEW)
        assert "Later" not in links(page)
        now = curve(page)[0]
        earlier = client.get(links(page)["Earlier"])
        assert curve(earlier)[0][-1] <= now[0]
        later = curve(client.get(links(earlier)["Later"]))[0]
        assert later[0] >= now[0] - 60
        inside = curve(client.get(links(earlier)["Zoom in"]))[0]
        assert len(inside) < 40
        for _ in range(25):
            following = links(page).get("Zoom out")
            if following is None:
                break
            page = client.get(following)
        assert "Zoom out" not in links(page)
        assert len(curve(page)[0]) <= 721
        month = client.get(OVERVIEW, params={"range": "30d"})
        assert "Zoom out" not in links(month)


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ({"range": "2h"}, 422),
        ({"range": "1h", "since": "2026-01-01T00:00"}, 422),
        ({"since": "yesterday"}, 422),
        ({"since": "9999-12-31T23:59:59"}, 200),
        ({"since": "0001-01-01T00:00:00"}, 200),
        ({"until": "0001-01-01T00:00:00"}, 200),
        ({"until": "9999-12-31T23:59:59.999999"}, 200),
        ({"since": "2026-01-02T00:00", "until": "2026-01-01T00:00"}, 200),
        ({"since": "2026-01-01T00:00:00.000001+00:00", "until": "2026-01-01T00:00:00.000002"}, 200),
    ],
)
def test_no_time_is_an_error_of_the_server(
    running: Running, query: dict[str, str], status: int
) -> None:
    with running.client(headers=PAGE) as client:
        page = client.get(OVERVIEW, params=query)
        assert page.status_code == status
        assert client.get("/dashboard/figures", params=query).status_code == status
        if status == 200:
            assert 10 <= len(curve(page)[0]) <= 721
            expected = 200 if "range" not in query else 422
            assert client.get(VALIDATIONS, params=query).status_code == expected


def test_results_are_counted_where_counters_know(running: Running) -> None:
    """By time, result and reason. With any other filter there is no chart that could mislead."""
    then = floor_to_minute(datetime.now(UTC)) - timedelta(days=25)
    record(running, then, Reason.GENUINE, 7)
    record(running, then, Reason.NOT_OPENED, 5)
    day = {
        "since": (then - timedelta(minutes=5)).replace(tzinfo=None).isoformat(),
        "until": (then + timedelta(minutes=10)).replace(tzinfo=None).isoformat(),
    }
    with running.client(headers=PAGE) as client:
        for query in ({}, {"result": "FAIL"}, {"reason": "not_opened"}):
            page = client.get(VALIDATIONS, params=day | query)
            counts = re.findall(r'<li><a href="([^"]+)"[^>]*>(\w+ [\d,]+)</a></li>', page.text)
            assert [text for _, text in counts] == ["all 12", "PASS 7", "FAIL 5"]
            listed = client.get(unescape(counts[2][0]))
            assert listed.text.count('badge bad">FAIL') == 5
        for query in ({"device": "camera"}, {"caller": "chart"}, {"table": "1"}):
            assert "data-curve" not in client.get(VALIDATIONS, params=day | query).text


def test_rows_that_share_a_second_can_be_told_apart(running: Running) -> None:
    """Times have milliseconds, in the list and on the page of a validation."""
    second = floor_to_minute(datetime.now(UTC)) - timedelta(days=26)
    for millisecond in (7, 250):
        record(running, second + timedelta(milliseconds=millisecond), Reason.NOT_OPENED, 1)
    query = {"until": (second + timedelta(seconds=1)).replace(tzinfo=None).isoformat()}
    with running.client(headers=PAGE) as client:
        page = client.get(VALIDATIONS, params=query).text
        shown = re.findall(r"<td><a href=\"([^\"]+)\"><time[^>]*>[\d -]+:\d\d:(\d\d\.\d{3})<", page)
        assert [text for _, text in shown[:2]] == ["00.250", "00.007"]
        one = client.get(unescape(shown[0][0]))
        assert "00.250 UTC" in one.text
        around = client.get(unescape(re.findall(r'<p><a href="([^"]+)">Validations', one.text)[0]))
        assert "00.007" in around.text
