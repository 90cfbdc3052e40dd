"""/metrics of one server of several processes: the sums of all, whichever process answers."""

import http.client
import os
import signal
import time
from collections import Counter
from typing import Any
from urllib.parse import urlsplit

from prometheus_client.parser import text_string_to_metric_families

from tests.end_to_end.conftest import Start
from tests.support.camera import Camera
from tests.support.load import validate_all
from tests.support.running import Running, children_of, new_serial, wait_until

WORKERS = 4
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


def test_totals_are_those_of_the_audit_trail(start_server: Start) -> None:
    """With four processes under load, whichever of them is scraped; and after two are killed."""
    running = start_server("--workers", str(WORKERS))
    with running.client("127.0.6.1") as client:
        camera = Camera.provisioned(client, new_serial())
    tokens = [camera.token(key_index=n) for n in range(600)]
    tokens += tokens[:50]
    forged = [camera.token(nuc_hash=bytes(32)) for _ in range(50)]
    validate_all(running.server.url, tokens, connections=32)
    validate_all(running.server.url, forged, connections=32)
    compare(running, len(tokens) + len(forged))

    killed = set(workers_of(running)[:2])
    for process in killed:
        os.kill(process, signal.SIGKILL)
    wait_until(lambda: len(set(workers_of(running)) - killed) == WORKERS, 60)
    wait_until(lambda: scrapeable(running), 60)
    compare(running, len(tokens) + len(forged))
    validate_all(running.server.url, tokens[:40], connections=8)
    compare(running, len(tokens) + len(forged) + 40)


def workers_of(running: Running) -> list[int]:
    """The processes that serve."""
    found = children_of(running.server.process.pid)
    return [process for process, line in found.items() if "spawn_main" in line]


def scrapeable(running: Running) -> bool:
    """Whether all processes are there again."""
    try:
        return scrape(running)["sma_workers", ()] == WORKERS
    except (OSError, http.client.HTTPException):
        return False


def compare(running: Running, judged: int) -> None:
    """Hold what each of many scrapes says against the rows."""
    reasons: Any = dict(
        running.rows("SELECT reason, count(*) FROM validation_history GROUP BY reason")
    )
    repeats: Any = dict(
        running.rows(
            "SELECT repeat, count(*) FROM validation_history WHERE repeat IS NOT NULL"
            " GROUP BY repeat"
        )
    )
    time.sleep(1.1)  # what is copied once a second
    for _ in range(SCRAPES):
        samples = scrape(running)
        assert by_label(samples, "sma_verdicts_total", "reason") == reasons
        assert by_label(samples, "sma_repeats_total", "kind") == repeats
        assert sum(reasons.values()) == judged
        assert by_label(samples, "sma_batch_items_sum", "writer")["validation"] == judged
        requests = by_label(samples, "sma_http_requests_total", "route")
        assert requests["/api/v1/validate/nuc"] == judged
        answered = by_label(samples, "sma_http_request_duration_seconds_count", "route")
        assert answered["/api/v1/validate/nuc"] == judged
        assert samples["sma_key_table_tokens_total", (("tables", "0-99"),)] >= 0
        assert by_label(samples, "sma_key_table_tokens_total", "tables").total() == judged
        assert samples["sma_workers", ()] == WORKERS
