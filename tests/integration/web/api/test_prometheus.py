"""/metrics of one process; and dashboard and alerts, held against what the server exports."""

import asyncio
import json
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from birthmark_sma.authority.authority import Authority
from birthmark_sma.authority.operations.statistics import TotalsReader
from birthmark_sma.errors import DatabaseUnavailableError
from birthmark_sma.runtime.metrics import BATCH_ITEMS, RATE_LIMIT_REFUSALS
from birthmark_sma.runtime.shared_memory_metrics import (
    Counter,
    Histogram,
    SharedCounters,
    SlotAllocator,
)
from birthmark_sma.storage.portable_sql import as_sqlite_text
from birthmark_sma.web.middleware.timeouts import FRESH_SECONDS, MetricsCache
from tests.support.authorities import counted_statements, execute, new_camera
from tests.support.cameras.camera import VALIDATE, Camera, wire
from tests.support.programs.running import Running, new_serial

DEPLOY = Path(__file__).parents[4] / "deploy"
NAME = re.compile(r"\bsma_[a-z_]+")
MATCHER = re.compile(r"(sma_[a-z_]+)\{([^}]*)\}")
LABEL = re.compile(r"([a-z_]+)\s*(?:=~|!~|!=|=)")
GROUPED = re.compile(r"\b(?:by|without)\s*\(([^)]*)\)")
ADDED_BY_PROMETHEUS = {"instance", "job", "le"}


@pytest.fixture
def exported(running_on_sqlite: Running) -> dict[str, set[str]]:
    """Every sample name that the server exports, with its labels."""
    with running_on_sqlite.client() as client:
        Camera.provisioned(client, new_serial())
        text = client.get("/metrics").text
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


def expressions() -> list[str]:
    """Every PromQL expression of the dashboard and the alert rules."""
    dashboard = json.loads((DEPLOY / "grafana/birthmark-sma.json").read_text())
    found = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    found += [each["query"] for each in dashboard["templating"]["list"]]
    return found + [rule["expr"] for rule in rules()]


def rules() -> list[dict[str, Any]]:
    """The alert rules."""
    groups = yaml.safe_load((DEPLOY / "prometheus/alerts.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def test_dashboard_and_alerts_ask_for_what_is_exported(exported: dict[str, set[str]]) -> None:
    """Every name that a server exports, and only its labels; and none is forgotten."""
    asked: set[str] = set()
    for expression in expressions():
        asked |= set(NAME.findall(expression))
        labels = {label for group in GROUPED.findall(expression) for label in group.split(",")}
        labels = {label.strip() for label in labels} - ADDED_BY_PROMETHEUS
        known: set[str] = set()
        for name in NAME.findall(expression):
            known |= exported[name]
        assert labels <= known, expression
        for name, matchers in MATCHER.findall(expression):
            used = set(LABEL.findall(matchers)) - ADDED_BY_PROMETHEUS
            assert used <= exported[name], expression
    families = {re.sub(r"_(bucket|sum|count)$", "", name) for name in exported}
    shown = {re.sub(r"_(bucket|sum|count)$", "", name) for name in asked}
    assert families == shown


def test_device_certificates_that_end_are_counted(authority: Authority) -> None:
    """Once a minute, however often the totals are read."""
    for number, days in enumerate((-100, -1, 1, 29, 31, 89, 91)):
        new_camera(authority, f"camera-{number}")
        end = authority.database.clock.now() + timedelta(days=days)
        execute(
            authority.database,
            "UPDATE registered_devices SET certificate_expires_at = :end WHERE device_serial ="
            f" 'camera-{number}'",
            end=as_sqlite_text(end) if authority.settings.uses_sqlite else end,
        )
    totals = TotalsReader(authority.database)
    assert totals.read().expiring == {0: 1, 30: 2, 90: 4}
    with counted_statements(authority.database) as statements:
        assert totals.read().expiring == {0: 1, 30: 2, 90: 4}
    assert not [each for each in statements if "certificate_expires_at" in each]


def test_alerts_say_what_to_do() -> None:
    """Each with a severity, a sentence, and advice."""
    assert len(rules()) > 10
    for rule in rules():
        assert rule["labels"]["severity"] in {"warning", "critical"}
        assert rule["annotations"].keys() == {"summary", "action"}


def test_requests_are_counted(running: Running) -> None:
    """By what they asked for and got; what does not exist shares one label."""

    def count(client: httpx2.Client) -> dict[tuple[str, ...], float]:
        return {
            tuple(sample.labels[each] for each in ("route", "method", "status")): sample.value
            for family in text_string_to_metric_families(client.get("/metrics").text)
            for sample in family.samples
            if sample.name == "sma_http_requests_total"
        }

    with running.client() as client:
        camera = Camera.provisioned(client, new_serial())
        time.sleep(FRESH_SECONDS)
        before = count(client)
        client.post(VALIDATE, json=wire(camera.token()))
        client.post(VALIDATE, json=wire(camera.token()) | {"table_id": 100_000})
        client.post(VALIDATE, json={})
        client.request("PUT", "/coffee/" + "x" * 1000)
        time.sleep(FRESH_SECONDS)
        after = count(client)
    grown = {labels: n - before.get(labels, 0) for labels, n in after.items()}
    assert {labels: n for labels, n in grown.items() if n} == {
        (VALIDATE, "POST", "200"): 1,
        (VALIDATE, "POST", "400"): 1,
        (VALIDATE, "POST", "422"): 1,
        ("unknown", "other", "404"): 1,
        ("/metrics", "GET", "200"): 1,
    }


def test_a_sheet_is_taken_once() -> None:
    """By one process; what a dead one left is gone on with, and never falls."""
    layout = SlotAllocator()
    counter = Counter(layout, RATE_LIMIT_REFUSALS, [("a",), ("b",)])
    histogram = Histogram(layout, BATCH_ITEMS, (10, 20))
    shared_counters = SharedCounters(1, layout.size)
    first = shared_counters.take_one()
    counter.add(first, ("b",), 5)
    for amount in (10, 11, 20, 21):
        histogram.observe(first, amount)
    too_many = shared_counters.take_one()
    counter.add(too_many, ("b",), 100)
    assert counter.total(shared_counters.all()) == {("a",): 0, ("b",): 5}
    assert histogram.total(shared_counters.all()) == ([1, 3, 4], 62)
    first[0] = 2**22 + 1  # no process has this id: the one that had the sheet has died
    assert shared_counters.alive() == []
    counter.add(shared_counters.take_one(), ("b",))
    assert counter.total(shared_counters.all())["b",] == 6
    assert len(shared_counters.alive()) == 1


async def test_however_many_ask_it_is_made_once() -> None:
    """And again once it is old; an error of the database is a figure."""
    asked: list[int] = []
    away = threading.Event()

    def ask() -> int:
        asked.append(1)
        if away.is_set():
            raise DatabaseUnavailableError
        return len(asked)

    with ThreadPoolExecutor(1) as thread:
        scrapes = MetricsCache(thread, ask, lambda totals: str(totals).encode())
        assert set(await asyncio.gather(*(scrapes.text() for _ in range(500)))) == {b"1"}
        leaving = asyncio.create_task(scrapes.text())
        leaving.cancel()
        await asyncio.sleep(FRESH_SECONDS)
        away.set()
        assert set(await asyncio.gather(*(scrapes.text() for _ in range(500)))) == {b"None"}
        away.clear()
        await asyncio.sleep(FRESH_SECONDS)
        assert await scrapes.text_for_server() == b"3"
        assert await scrapes.text() == b"4"  # a scrape never gets what the server read for itself
    assert len(asked) == 4


async def test_a_database_that_hangs_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scrapers are told that it is away, the later ones at once, and nothing piles up."""
    monkeypatch.setattr("birthmark_sma.web.middleware.timeouts._DATABASE_SECONDS", 1.0)
    asked: list[int] = []
    answers = threading.Event()

    def ask() -> int:
        asked.append(1)
        assert answers.wait(30)
        return len(asked)

    with ThreadPoolExecutor(1) as thread:
        scrapes = MetricsCache(thread, ask, lambda totals: str(totals).encode())
        began = time.monotonic()
        assert await scrapes.text() == b"None"
        first = time.monotonic() - began
        for _ in range(3):
            await asyncio.sleep(FRESH_SECONDS)
            began = time.monotonic()
            assert await scrapes.text() == b"None"
            assert time.monotonic() - began < first / 2
        assert len(asked) == 1
        answers.set()
        await asyncio.sleep(FRESH_SECONDS)
        assert await scrapes.text() == b"2"
