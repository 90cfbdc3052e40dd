"""Traces of a real server, at a real collector; without one; and without OpenTelemetry."""

import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from tests.end_to_end.conftest import Start
from tests.support.cameras.camera import VALIDATE, Camera, wire
from tests.support.databases.redis import Redis
from tests.support.http.ports import reserved_port
from tests.support.http.trace_collector import CollectedSpan, Collector, collecting
from tests.support.programs.load import validate_all
from tests.support.programs.running import Running, new_serial, wait_until
from tests.support.programs.server import SMA, server_environ
from tests.support.secret_search import found_in

QUICK = {"OTEL_BSP_SCHEDULE_DELAY": "100"}
STEPS = ["parse", "wait", "open", "settle", "commit"]
BATCH = f"{VALIDATE}/batch"
PARENT = "00f067aa0ba902b7"
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


def sent_by(collector: Collector, request_id: str) -> CollectedSpan:
    """The span of a request, once it and all that is below it have arrived."""

    def found() -> list[CollectedSpan]:
        return [
            span
            for span in list(collector.spans)
            if span.attributes.get("sma.request_id") == request_id
        ]

    wait_until(lambda: bool(found()), 20)
    (span,) = found()
    return span


def steps_of(
    collector: Collector, request: CollectedSpan, names: list[str] = STEPS
) -> list[CollectedSpan]:
    """Its steps, in order, each beginning where the one before ended."""
    wait_until(lambda: len(collector.below(request)) == len(names), 20)
    below = collector.below(request)
    steps = [below[name] for name in names]
    assert request.began <= steps[0].began
    assert steps[-1].ended <= request.ended
    for before, after in pairwise(steps):
        assert before.began <= before.ended <= after.began
    assert {step.trace for step in steps} == {request.trace}
    return steps


def check_shared(collector: Collector, request: CollectedSpan, items: int) -> CollectedSpan:
    """The last three steps link to their batch, and that to the request."""
    *_, opening, settling, committing = steps_of(collector, request)
    (batch_id,) = {link for step in (opening, settling, committing) for link in step.links}
    wait_until(lambda: any(span.span == batch_id for span in list(collector.spans)), 20)
    (batch,) = [span for span in collector.spans if span.span == batch_id]
    assert batch.name == "batch"
    assert (batch.parent, batch.attributes["sma.batch.items"]) == ("", items)
    assert request.span in batch.links
    assert batch.trace != request.trace
    return batch


def test_a_validation_shows_its_steps(start_server: Start) -> None:
    """One token and a batch; below the sender's span where it names one; nothing secret in any."""
    with collecting() as collector:
        running = start_server("--traces-url", collector.url, **QUICK)
        with running.client() as client:
            camera = Camera.provisioned(client, new_serial())
            token = camera.token()
            named = {
                "X-Request-ID": "one",
                "traceparent": f"00-{TRACE}-{PARENT}-01",
                "Idempotency-Key": "needle-idempotency-key",
            }
            assert client.post(VALIDATE, json=wire(token), headers=named).status_code == 200
            several = {"tokens": [wire(camera.token(key_index=n)) for n in range(7)] + [{}]}
            client.post(BATCH, json=several, headers={"X-Request-ID": "several"})
            client.post(VALIDATE, json={}, headers={"X-Request-ID": "malformed"})
            unknown = wire(camera.token()) | {"table_id": 100_000}
            client.post(VALIDATE, json=unknown, headers={"X-Request-ID": "unknown"})
            client.get("/health/live", headers={"X-Request-ID": "probe"})
            forged = {"X-Request-ID": "forged", "traceparent": "00-zz-" + "x" * 5000}
            client.get("/coffee/sma_needle", headers=forged)

        one = sent_by(collector, "one")
        assert (one.trace, one.parent) == (TRACE, PARENT)
        assert one.name == f"POST {VALIDATE}"
        assert one.attributes["http.response.status_code"] == 200
        assert one.service == "birthmark-sma"
        check_shared(collector, one, 1)

        batch = sent_by(collector, "several")
        assert batch.parent == ""
        check_shared(collector, batch, 7)

        malformed = sent_by(collector, "malformed")
        wait_until(lambda: len(collector.below(malformed)) == 1, 20)
        assert collector.below(malformed)["parse"].failed
        assert malformed.attributes["http.response.status_code"] == 422
        assert not malformed.failed  # it is the sender's fault

        refused = sent_by(collector, "unknown")
        assert refused.attributes["http.response.status_code"] == 400
        steps_of(collector, refused)

        unrouted = sent_by(collector, "forged")
        assert (unrouted.name, unrouted.parent) == ("GET", "")
        assert unrouted.attributes["http.response.status_code"] == 404
        assert running.server.terminate() == 0
        ids = {span.attributes.get("sma.request_id") for span in collector.spans}
        assert "probe" not in ids
        everything = b"".join(collector.bodies)
        needles = {"NUC hash": camera.nuc_hash, "nonce": token.nonce}
        needles |= {"encrypted": token.encrypted_nuc_hash, "key": b"needle"}
        needles |= {f"table {n}": key for n, key in camera.table_keys.items()}
        assert found_in(everything, needles) == []
        assert camera.serial.encode() not in everything


def test_the_time_of_a_shared_store_is_a_step(start_server: Start, redis: Redis) -> None:
    """Of one token and of a batch: it does not count as waiting for the writer."""
    caller = f"127.8.{secrets.randbelow(256)}.3"
    with collecting() as collector:
        running = start_server(
            *("--traces-url", collector.url, "--rate-validate", "5/hour"),
            SMA_RATE_STORE=redis.url,
            **QUICK,
        )
        with running.client(caller) as client:
            camera = Camera.provisioned(client, new_serial())
            several = {"tokens": [wire(camera.token(key_index=n)) for n in range(4)]}
            one = client.post(VALIDATE, json=wire(camera.token()), headers={"X-Request-ID": "one"})
            many = client.post(BATCH, json=several, headers={"X-Request-ID": "several"})
            assert (one.status_code, many.status_code) == (200, 200)
        for name in ("one", "several"):
            request = sent_by(collector, name)
            steps = steps_of(collector, request, ["parse", "limit", *STEPS[1:]])
            assert not any(step.failed for step in steps)


def test_many_share_a_batch(start_server: Start) -> None:
    """A commit that many waited for is one span, to which each of them links."""
    with collecting() as collector:
        running = start_server(
            "--traces-url", collector.url, OTEL_BSP_MAX_QUEUE_SIZE="20000", **QUICK
        )
        with running.client() as client:
            camera = Camera.provisioned(client, new_serial())
        tokens = [camera.token(key_index=n) for n in range(200)]
        answers = validate_all(running.server.url, tokens, connections=32)
        assert {answer.status for answer in answers if answer} == {200}
        assert running.server.terminate() == 0
        singles = collector.named(f"POST {VALIDATE}")
        assert len(singles) == len(tokens)
        batches = {span.span: span for span in collector.named("batch")}
        assert sum(batch.attributes["sma.batch.items"] for batch in batches.values()) == 200
        assert any(len(batch.links) > 1 for batch in batches.values())
        for single in singles:
            (batch,) = collector.below(single)["commit"].links
            assert single.span in batches[batch].links


def test_what_is_not_sampled_costs_no_span(start_server: Start) -> None:
    """OpenTelemetry's own variables count: here only what a sender samples is traced."""
    with collecting() as collector:
        running = start_server(
            "--traces-url",
            collector.url,
            OTEL_TRACES_SAMPLER="parentbased_always_off",
            OTEL_SERVICE_NAME="another",
            **QUICK,
        )
        with running.client() as client:
            camera = Camera.provisioned(client, new_serial())
            client.post(VALIDATE, json=wire(camera.token()))
            sampled = {"X-Request-ID": "asked", "traceparent": f"00-{TRACE}-{PARENT}-01"}
            client.post(VALIDATE, json=wire(camera.token()), headers=sampled)
            left_out = {"traceparent": f"00-{TRACE}-{PARENT}-00"}
            client.post(VALIDATE, json=wire(camera.token()), headers=left_out)
        assert sent_by(collector, "asked").service == "another"
        assert running.server.terminate() == 0
        assert len(collector.named(f"POST {VALIDATE}")) == 1
        assert len(collector.named("batch")) == 1


def said_lines(running: Running, words: str) -> list[str]:
    """The lines of the log that say this."""
    return [line for line in running.server.said().splitlines() if words in line]


@pytest.fixture
def port() -> Iterator[int]:
    """A port that refuses connections until the test listens on it."""
    with reserved_port() as port:
        yield port


def test_nothing_suffers_without_the_collector(start_server: Start, port: int) -> None:
    """Away, wrong, back, and hanging: answers as ever, a line in the log, and a quick stop."""
    url = f"http://127.0.0.1:{port}"
    running = start_server(
        "--traces-url",
        url,
        OTEL_BSP_MAX_QUEUE_SIZE="64",
        OTEL_BSP_MAX_EXPORT_BATCH_SIZE="32",
        OTEL_EXPORTER_OTLP_TIMEOUT="1",
        **QUICK,
    )
    with running.client() as client:
        camera = Camera.provisioned(client, new_serial())
    tokens = [camera.token(key_index=n) for n in range(300)]
    answers = validate_all(running.server.url, tokens, connections=16)
    assert {answer.status for answer in answers if answer} == {200}
    wait_until(lambda: bool(said_lines(running, "does not answer: traces are lost")), 20)
    validate_all(running.server.url, tokens[:100], connections=16)
    time.sleep(2)
    assert len(said_lines(running, "traces are lost")) == 1
    assert said_lines(running, "urllib3") == said_lines(running, "opentelemetry") == []
    with collecting(port) as collector:
        ask_until(running, camera, lambda: bool(collector.spans))
        wait_until(lambda: bool(said_lines(running, "takes them again")), 20)
        collector.status = 401
        ask_until(running, camera, lambda: bool(said_lines(running, "answers 401")))
    with socket.create_server(("127.0.0.1", port)):  # takes connections, answers nothing
        with running.client() as client:
            client.post(VALIDATE, json=wire(camera.token()))
        began = time.monotonic()
        assert running.server.terminate() == 0
        assert time.monotonic() - began < 10
    assert "Traceback" not in running.server.said()


def ask_until(running: Running, camera: Camera, done: object) -> None:
    """Send tokens until something happens."""

    def asked() -> bool:
        with running.client() as client:
            assert client.post(VALIDATE, json=wire(camera.token())).status_code == 200
        return bool(callable(done) and done())

    wait_until(asked, 30)


def test_several_processes_trace(tmp_path: Path, start_server: Start) -> None:
    """Each sends its own."""
    with collecting() as collector:
        running = start_server("--workers", "2", "--traces-url", collector.url, **QUICK)
        with running.client() as client:
            camera = Camera.provisioned(client, new_serial())
        validate_all(running.server.url, [camera.token() for _ in range(40)], connections=16)
        wait_until(lambda: len(collector.named(f"POST {VALIDATE}")) == 40, 20)


def test_without_opentelemetry_it_says_so(tmp_path: Path) -> None:
    """One sentence at the start, and nothing founded; without the setting nobody misses it."""
    hidden = tmp_path / "hidden"
    for module in ("opentelemetry.sdk", "opentelemetry.exporter"):
        place = hidden / "sitecustomize.py"
        place.parent.mkdir(exist_ok=True)
        with place.open("a") as file:
            file.write(f"import sys; sys.modules[{module!r}] = None\n")
    environ = server_environ(tmp_path / "data") | {"PYTHONPATH": str(hidden)}
    refused = subprocess.run(
        [*SMA, "serve", "--traces-url", "http://127.0.0.1:1", "--port", "0"],
        env=environ,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert refused.returncode == 3
    assert refused.stderr.count("\n") == 1
    assert "pip install opentelemetry-sdk " in refused.stderr
    assert not (tmp_path / "data").exists()


def test_switched_off_nothing_is_imported(tmp_path: Path) -> None:
    """Neither the SDK nor the exporter: whoever wants no traces pays nothing for them."""
    program = (
        "import sys, birthmark_sma.cli.main, birthmark_sma.web.server, birthmark_sma.web.api.app\n"
        "from birthmark_sma.config import Settings\n"
        "from birthmark_sma.web.server import make_tracing\n"
        "assert make_tracing(Settings()) is None\n"
        "print([m for m in sys.modules if m.startswith(('opentelemetry.sdk', 'requests',"
        " 'opentelemetry.exporter', 'birthmark_sma.web.middleware.tracing'))])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout.strip() == "[]"
