"""What stands in the log, and what must never: of a server that fails, at its most talkative."""

import json
import sqlite3
from contextlib import closing
from typing import Any

import httpx2
import psycopg
import pytest

from tests.end_to_end.conftest import Start
from tests.support.cameras.camera import (
    PROVISION,
    VALIDATE,
    Camera,
    provision_body,
    wire,
)
from tests.support.programs.commands import sma
from tests.support.programs.load import validate_all
from tests.support.programs.running import Running, new_serial, wait_until
from tests.support.secret_search import found_in

TALKATIVE = ("--log-level", "debug", "--slow-query-ms", "0.000001")
REFUSING = {
    "sqlite": "CREATE TRIGGER no_{table} BEFORE INSERT ON {table}"
    " BEGIN SELECT RAISE(ABORT, 'refused'); END",
    "postgresql": "ALTER TABLE {table} ADD CONSTRAINT no_{table} CHECK (false) NOT VALID",
}


def refuse_rows(running: Running, table: str) -> None:
    """Let the database refuse every row of a table from now on; PostgreSQL quotes it, too."""
    if running.uses_sqlite:
        with closing(sqlite3.connect(running.database_url.removeprefix("sqlite:///"))) as file:
            file.execute(REFUSING["sqlite"].format(table=table))
    else:
        with psycopg.connect(running.database_url) as connection:
            connection.execute(REFUSING["postgresql"].format(table=table).encode())


def records_of(running: Running, request_id: str, words: str) -> list[dict[str, Any]]:
    """The records that were written for one request, with these words."""
    return [
        line
        for line in running.server.log_records()
        if words in line["event"]
        and (line.get("request_id") == request_id or request_id in line.get("request_ids", ()))
    ]


def test_whatever_is_logged_names_its_request(start_server: Start) -> None:
    """Slow queries and debug lines of writers, signers and askers; warnings; a fault."""
    running = start_server(*TALKATIVE, "--log-format", "json")
    with running.client() as client:
        camera = Camera.provisioned(client, new_serial())

        def ask(name: str, method: str, path: str, **options: Any) -> httpx2.Response:
            return client.request(method, path, headers={"X-Request-ID": name}, **options)

        ask("single", "POST", VALIDATE, json=wire(camera.token()))
        batch = {"tokens": [wire(camera.token(key_index=n)) for n in range(3)]}
        ask("batch", "POST", f"{VALIDATE}/batch", json=batch)
        ask("device", "POST", PROVISION, json=provision_body(new_serial()))
        ask("stats", "GET", "/stats")
        ask("page", "GET", "/dashboard/devices")
        refuse_rows(running, "validation_history")
        assert ask("fault", "POST", VALIDATE, json=wire(camera.token())).status_code == 500
    validate_all(running.server.url, [camera.token() for _ in range(60)], connections=30)

    def shared() -> list[dict[str, Any]]:
        return [line for line in running.server.log_records() if line.get("requests", 0) > 1]

    wait_until(lambda: bool(records_of(running, "fault", "failed")), 10)
    wait_until(lambda: bool(shared()), 10)
    for name in ("single", "batch", "fault"):
        assert records_of(running, name, "a statement took"), name
    for name in ("single", "batch", "device"):
        assert records_of(running, name, " items, "), name
    assert records_of(running, "device", "a statement took")
    assert any(
        "INSERT INTO registered_devices" in line["event"]
        for line in records_of(running, "device", "a statement took")
    )
    assert records_of(running, "stats", "a statement took")
    assert records_of(running, "page", "a statement took")
    assert records_of(running, "fault", "an item could not be settled")
    assert "Traceback" in records_of(running, "fault", "failed")[0]["exception"]
    assert all(len(line["request_ids"]) <= min(8, line["requests"]) for line in shared())
    for line in running.server.log_records():
        if line.get("logger") and "items" in line["event"]:
            assert "request_id" in line or "requests" in line


@pytest.mark.parametrize("look", ["json", "pretty"])
def test_nothing_secret_at_any_level(look: str, start_server: Start) -> None:
    """Threat 28: no key, token, NUC hash or Idempotency-Key, wherever it was put by mistake."""
    running = new_authority(start_server)
    admin, provision, validate = (make_key(running, scope) for scope in SCOPES)
    running = start_server("--access", "keys", "--log-format", look, *TALKATIVE)
    idempotency_key = "needle-9f2c55d1-idempotency"
    with running.client() as client:

        def ask(key: str, method: str, path: str, **options: Any) -> httpx2.Response:
            headers = {"Authorization": f"Bearer {key}", "Idempotency-Key": idempotency_key}
            return client.request(method, path, headers=headers, **options)

        device = provision_body(new_serial())
        first = ask(provision, "POST", PROVISION, json=device)
        assert first.status_code == 200, first.text
        camera = Camera.of(device["device_serial"], first.json())
        tokens = [camera.token(key_index=n) for n in range(6)]
        assert ask(validate, "POST", VALIDATE, json=wire(tokens[0])).status_code == 200
        ask(validate, "POST", f"{VALIDATE}/batch", json={"tokens": list(map(wire, tokens))})
        ask(validate, "POST", VALIDATE, json=wire(tokens[1]) | {"nonce": 5})
        ask(validate + "x", "POST", VALIDATE, json=wire(tokens[0]))
        ask(provision, "POST", VALIDATE, json=wire(tokens[0]))
        for misplaced in (admin, f"%1b[2J%0a{admin}"):
            ask(admin, "GET", f"/{misplaced}?key={admin}")
            ask(admin, "GET", f"/dashboard/devices/{misplaced}", params={"key": admin})
        ask(admin, "GET", "/stats")
        ask(admin, "GET", "/metrics")
        client.get("/stats", headers={"Authorization": f"Bearer {admin}", "X-Request-ID": admin})
        for table in ("validation_history", "registered_devices", "idempotent_responses"):
            refuse_rows(running, table)
        failed = ask(validate, "POST", VALIDATE, json=wire(tokens[2]))
        assert failed.status_code == 500
        ask(validate, "POST", f"{VALIDATE}/batch", json={"tokens": list(map(wire, tokens))})
        another = provision_body(new_serial())
        assert (
            client.post(
                PROVISION,
                json=another,
                headers={
                    "Authorization": f"Bearer {provision}",
                    "Idempotency-Key": idempotency_key + "2",
                },
            ).status_code
            == 500
        )
    assert running.server.terminate() == 0
    said = running.server.said()
    assert "Traceback" in said
    assert "could not be settled" in said
    assert "/sma_..." in said
    needles = {
        "NUC hash": camera.nuc_hash,
        "idempotency key": idempotency_key.encode(),
        **{
            name: key.rpartition("_")[2].encode()
            for name, key in (("admin", admin), ("provision", provision), ("validate", validate))
        },
        **{f"table {n}": key for n, key in camera.table_keys.items()},
        **{f"token {n}": token.encrypted_nuc_hash for n, token in enumerate(tokens)},
        **{f"nonce {n}": token.nonce for n, token in enumerate(tokens)},
    }
    assert found_in(said.encode(), needles) == []
    assert "\x1b" not in said  # stderr is a file


SCOPES = ("admin", "provision", "validate")


def new_authority(start_server: Start) -> Running:
    """A server that founds its authority, and stops."""
    running = start_server()
    assert running.server.terminate() == 0
    return running


def make_key(running: Running, scope: str) -> str:
    """A new access key."""
    made = sma("keys", "create", scope, "--scope", scope, "--json", environ=running.environ)
    assert made.returncode == 0, made.stderr
    key: str = json.loads(made.stdout)["key"]
    return key
