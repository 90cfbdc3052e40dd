"""Request ids and the log: one line a request, and nothing secret in any."""

import json
import os
import time
from typing import Any

import pytest

from birthmark_sma.protocol.verdict import Reason
from birthmark_sma.runtime.background_output import BackgroundOutput
from birthmark_sma.web.logs.setup import LogStyle, note_left_out
from birthmark_sma.web.middleware.request_metrics import RequestLog
from tests.end_to_end.conftest import Start
from tests.support.cameras.camera import VALIDATE, Camera, wire
from tests.support.http.contexts import make_context
from tests.support.programs.running import Running, new_serial, wait_until
from tests.support.secret_search import found_in


@pytest.mark.parametrize("given", [b"a", b"A-z.0_9~:/+=@,", b"x" * 128])
def test_a_good_id_is_kept(given: bytes) -> None:
    """Up to 128 characters that no log takes for anything else."""
    assert make_context(headers=[(b"x-request-id", given)]).request_id == given.decode()


@pytest.mark.parametrize(
    "given",
    [
        b"",
        b"x" * 129,
        b"a b",
        b'a"b',
        b"a\\b",
        b"a\x1b[2J",
        b"\xe9",
        b"a\n",
        b"sma_abcdefghij_secret",
    ],
)
def test_another_id_is_replaced(given: bytes) -> None:
    """Threat 28: what could forge a line or a terminal's state, or looks like an access key."""
    known = make_context(headers=[(b"x-request-id", given)]).request_id
    assert known.encode() != given
    assert known.replace("-", "").isalnum()


def test_two_ids_are_none() -> None:
    """Parsers disagree on which one counts."""
    context = make_context(headers=[(b"x-request-id", b"a"), (b"x-request-id", b"b")])
    assert context.request_id not in {"a", "b"}


def logged_requests(running: Running) -> dict[str, dict[str, Any]]:
    """Return the lines of the log that are about requests, by request id."""
    records = running.server.log_records()
    return {line["request_id"]: line for line in records if line["event"] == "request"}


def test_one_line_a_request(start_server: Start) -> None:
    """Threat 28: with its id, also a direct answer and a problem; no part of token or answer."""
    running = start_server("--log-level", "debug")
    with running.client() as client:
        camera = Camera.provisioned(client, new_serial())
        token = camera.token()
        named = {"X-Request-ID": "direct-1"}
        assert client.post(VALIDATE, json=wire(token), headers=named).headers["x-request-id"] == (
            "direct-1"
        )
        refused = client.post(VALIDATE, json={}, headers={"X-Request-ID": "refused-1"})
        assert refused.headers["x-request-id"] == refused.json()["request_id"] == "refused-1"
        batch = {"tokens": [wire(camera.token()), wire(camera.token(master_key=bytes(32))), {}]}
        client.post(f"{VALIDATE}/batch", json=batch, headers={"X-Request-ID": "batch-1"})
        unnamed = client.get("/sma_abcdefghij_secret/%1b%0a", params={"key": "sma_secret"})
        assert unnamed.status_code == 404
    last = unnamed.headers["x-request-id"]
    wait_until(lambda: {"direct-1", "refused-1", last} <= logged_requests(running).keys(), 10)
    wait_until(lambda: "validation-writer: 1 items" in running.server.said(), 10)
    said = running.server.said()
    logged = logged_requests(running)
    direct = logged["direct-1"]
    assert (direct["method"], direct["path"], direct["status"]) == ("POST", VALIDATE, 200)
    assert (direct["key"], direct["address"]) == ("-", "127.0.0.1")
    assert 0 < direct["duration_ms"] < 60_000
    assert (direct["verdict"], direct["reason"]) == ("PASS", "genuine")
    assert logged["batch-1"]["verdicts"] == {"PASS": 1, "FAIL": 1}
    assert logged["batch-1"]["reasons"] == {"genuine": 1, "not_opened": 1}
    assert logged["refused-1"]["status"] == 422
    assert not {"verdict", "reason", "verdicts"} & logged["refused-1"].keys()
    assert logged[last]["path"].startswith("/sma_...")
    assert "secret" not in said
    needles = {"NUC hash": camera.nuc_hash, "nonce": token.nonce}
    needles |= {f"table {n}": key for n, key in camera.table_keys.items()}
    needles["encrypted"] = token.encrypted_nuc_hash
    assert found_in(said.encode(), needles) == []


@pytest.mark.parametrize(
    ("path", "reasons", "ending"),
    [
        (VALIDATE, [Reason.NOT_OPENED], "  FAIL not_opened\n"),
        (
            f"{VALIDATE}/batch",
            [Reason.GENUINE, Reason.GENUINE, Reason.NOT_OPENED],
            "  2 genuine, 1 not_opened\n",
        ),
        (VALIDATE, [], " the-id\n"),
    ],
)
def test_a_line_for_people_ends_with_the_verdict(
    path: str, reasons: list[Reason], ending: str
) -> None:
    reader, writer = os.pipe()
    output = BackgroundOutput(writer, note_left_out(LogStyle.PLAIN))
    context = make_context(path, "POST", headers=[(b"x-request-id", b"the-id")])
    context.reasons = reasons
    RequestLog(output, look=LogStyle.PLAIN).note(context, 1_000)
    assert os.read(reader, 65_536).decode().endswith(ending)
    output.close()
    os.close(reader)
    os.close(writer)


def test_nobody_waits_for_the_log() -> None:
    """Where nobody reads, lines are left out and counted; then it goes on."""
    reader, writer = os.pipe()
    output = BackgroundOutput(writer, note_left_out(LogStyle.JSON))
    log = RequestLog(output, look=LogStyle.JSON)
    began = time.monotonic()
    for _ in range(120_000):
        log.note(make_context(), 1_000)
    assert time.monotonic() - began < 30
    read = b""
    while b"were left out" not in read[-10_000:]:
        read += os.read(reader, 65_536)
    whole = read[: read.rindex(b"\n")].splitlines()
    assert [json.loads(line)["event"] for line in whole[:-1]] == ["request"] * (len(whole) - 1)
    assert output.left_out > 0
    output.close()
    os.close(reader)
    os.close(writer)
