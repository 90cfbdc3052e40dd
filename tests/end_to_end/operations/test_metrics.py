"""/metrics of one server of several processes: the sums of all, whichever process answers."""

import http.client
import os
import signal
import statistics
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from prometheus_client.parser import text_string_to_metric_families

from birthmark_sma.web.middleware.timeouts import FRESH_SECONDS
from tests.end_to_end.conftest import FEW_TABLES, Start
from tests.support.cameras.camera import Camera
from tests.support.databases.postgres import Postgres
from tests.support.programs.load import Answer, validate_all
from tests.support.programs.running import (
    Running,
    children_of,
    frozen,
    new_serial,
    resident_megabytes,
    start,
    wait_until,
    workers_of,
)

WORKERS = 4
LARGEST_BATCH = 32
"""As many connections ask at once, so no batch is larger."""
SCRAPES = 24

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def scrape(running: Running) -> Samples:
    """Scrape on a connection of its own, which any process may get."""
    place = urlsplit(running.server.url)
    connection = http.client.HTTPConnection(place.hostname or "", place.port, timeout=30)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    connection.close()
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def by_label(samples: Samples, name: str, label: str) -> Counter[str]:
    """Sum a metric up by one of its labels, without what is zero."""
    counted: Counter[str] = Counter()
    for (each, labels), value in samples.items():
        if each == name and value:
            counted[dict(labels)[label]] += int(value)
    return counted


def tokens_of_key_tables(samples: Samples) -> int:
    """Return how many tokens have named any key table."""
    return by_label(samples, "sma_key_table_tokens_total", "tables").total()


def test_totals_are_those_of_the_audit_trail(start_server: Start) -> None:
    """With four processes under load, whichever of them is scraped; and after two are killed."""
    running = start_server("--workers", str(WORKERS), SMA_TABLES="2500")
    with running.client("127.0.6.1") as client:
        camera = Camera.provisioned(client, new_serial())
    tokens = [camera.token(key_index=n) for n in range(600)]
    tokens += tokens[:50]
    forged = [camera.token(nuc_hash=bytes(32)) for _ in range(50)]
    validate_all(running.server.url, tokens, connections=LARGEST_BATCH)
    validate_all(running.server.url, forged, connections=LARGEST_BATCH)
    compare(running, len(tokens) + len(forged))

    killed = kill_two_under_load(running, camera)
    wait_until(lambda: len(set(workers_of(running)) - killed) == WORKERS, 60)
    wait_until(lambda: scrapeable(running), 60)
    # What was answered is in the trail; of the rest a process may have died before it counted.
    judged = running.count("validation_history")
    assert judged > len(tokens) + len(forged)
    compare(running, judged, lost=2 * LARGEST_BATCH)
    validate_all(running.server.url, tokens[:40], connections=8)
    compare(running, judged + 40, lost=2 * LARGEST_BATCH)


def kill_two_under_load(running: Running, camera: Camera) -> set[int]:
    """Kill two processes with SIGKILL while they judge; return which."""
    killed = set(workers_of(running)[:2])
    before = running.count("validation_history")

    def kill(answered: int) -> None:
        if answered == 300:
            for process in killed:
                os.kill(process, signal.SIGKILL)

    more = [camera.token(key_index=n % 1000) for n in range(1200)]
    answers = validate_all(running.server.url, more, connections=LARGEST_BATCH, note=kill)
    acknowledged = sum(answer is not None and answer.status == 200 for answer in answers)
    assert acknowledged >= 300
    wait_until(lambda: running.count("validation_history") >= before + acknowledged, 10)
    return killed


def scrapeable(running: Running) -> bool:
    """Whether all processes are there again."""
    try:
        return scrape(running)["sma_workers", ()] == WORKERS
    except (OSError, http.client.HTTPException):
        return False


def compare(running: Running, judged: int, *, lost: int = 0) -> None:
    """Hold what each of many scrapes says against the rows.

    Verdicts are those of the rows, always. What is counted in memory lacks at most what processes
    took along that were killed.
    """
    reasons: Any = dict(
        running.rows("SELECT reason, count(*) FROM validation_history GROUP BY reason")
    )
    repeats: Any = dict(
        running.rows(
            "SELECT repeat, count(*) FROM validation_history WHERE repeat IS NOT NULL"
            " GROUP BY repeat"
        )
    )
    # Each process copies the counts of its key tables once a second, and caches its text.
    wait_until(lambda: tokens_of_key_tables(scrape(running)) >= judged, 20)
    time.sleep(FRESH_SECONDS)
    for _ in range(SCRAPES):
        samples = scrape(running)
        assert by_label(samples, "sma_verdicts_total", "reason") == reasons
        assert by_label(samples, "sma_repeats_total", "kind") == repeats
        assert sum(reasons.values()) == judged
        items = by_label(samples, "sma_batch_items_sum", "writer")["validation"]
        requests = by_label(samples, "sma_http_requests_total", "route")["/api/v1/validate/nuc"]
        answered = by_label(samples, "sma_http_request_duration_seconds_count", "route")
        assert judged - lost <= requests <= items <= judged
        assert answered["/api/v1/validate/nuc"] == requests
        assert samples["sma_key_table_tokens_total", (("tables", "0-99"),)] >= 0
        assert judged <= tokens_of_key_tables(samples) <= judged + lost
        assert samples["sma_workers", ()] == WORKERS


def scrape_for_ever(running: Running, stop: threading.Event, answers: list[Answer]) -> None:
    """Scrape again as soon as there is a response, on one connection."""
    place = urlsplit(running.server.url)
    connection = http.client.HTTPConnection(place.hostname or "", place.port, timeout=30)
    while not stop.is_set():
        began = time.perf_counter()
        connection.request("GET", "/metrics")
        answer = connection.getresponse()
        answers.append(Answer(answer.status, answer.read(), time.perf_counter() - began))
    connection.close()


@contextmanager
def scraped_in_a_tight_loop(running: Running) -> Iterator[list[Answer]]:
    """Let eight scrapers ask without a pause. Yield the responses."""
    stop, answers = threading.Event(), list[Answer]()
    threads = [
        threading.Thread(target=scrape_for_ever, args=(running, stop, answers)) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    try:
        yield answers
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def median_validation(running: Running, camera: Camera) -> float:
    """Return the median time of 100 validations, in seconds. All of them must pass."""
    answers = validate_all(running.server.url, [camera.token() for _ in range(100)])
    assert {answer.status for answer in answers if answer} == {200}
    return statistics.median(answer.seconds for answer in answers if answer)


def test_scraping_without_end_costs_nobody_his_answer(
    own_postgres: Postgres, tmp_path: Path
) -> None:
    """Threat 26: also while the database hangs, or is gone: probes answer, memory stays."""
    running = start(tmp_path / "data", own_postgres.create_database("sma"), **FEW_TABLES)
    try:
        with running.client() as client:
            camera = Camera.provisioned(client, new_serial())
            pid = running.server.process.pid
            unscraped = median_validation(running, camera)
            with scraped_in_a_tight_loop(running) as answers:
                wait_until(lambda: len(answers) >= 16, 30)
                assert median_validation(running, camera) < 10 * unscraped
                before = resident_megabytes(pid)
                pid_file = own_postgres.data_directory / "postmaster.pid"
                postmaster = int(pid_file.read_text().splitlines()[0])
                with frozen([postmaster, *children_of(postmaster)]):
                    for _ in range(5):  # a scrape waits 4 seconds for a database
                        time.sleep(1)
                        assert client.get("/health/live").status_code == 200
                wait_until(lambda: scrape(running)["sma_database_up", ()] == 1, 30)
                own_postgres.stop()
                wait_until(lambda: scrape(running)["sma_database_up", ()] == 0, 30)
                assert client.get("/health/live").status_code == 200
                assert client.get("/health/ready").status_code == 503
                own_postgres.start()
                wait_until(lambda: scrape(running)["sma_database_up", ()] == 1, 30)
                assert resident_megabytes(pid) - before < 30
                wait_until(lambda: client.get("/health/ready").status_code == 200, 30)
            assert len(answers) > 200
            assert {answer.status for answer in answers} == {200}
            assert any(b"sma_database_up 0.0" in answer.body for answer in answers)
            answered = validate_all(running.server.url, [camera.token() for _ in range(10)])
            assert {answer.status for answer in answered if answer} == {200}
    finally:
        running.server.close()
