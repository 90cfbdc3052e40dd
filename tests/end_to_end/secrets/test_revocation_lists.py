"""The revocation list on a bad day: 100,000 entries, three processes, and a clock set back."""

import sqlite3
import statistics
import threading
import time
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import psycopg
import pytest
from cryptography import x509

from birthmark_sma.authority.devices.revocation import revoke_device
from tests.end_to_end.conftest import Start
from tests.support.cameras.camera import VALIDATE, Camera, wire
from tests.support.pki.crls import (
    INTERMEDIATE_CRL,
    ROOT_CRL,
    certificate_serial_of,
    fetch_crl,
    fetch_crl_with,
    number_of,
)
from tests.support.programs.commands import sma
from tests.support.programs.false_clock import FalseClock
from tests.support.programs.running import Running, new_serial
from tests.support.programs.server import SMA
from tests.support.soak import times

MANY = 100_000
FETCHES = times(45, 150)
_FIRST = 1 << 158


def revoke_many(running: Running) -> int:
    """Write revocations as an operator could; return the serial number of the last one."""
    statement = (
        "INSERT INTO revoked_certificates"
        " (certificate_serial, device_serial, revoked_at, revocation_reason)"
        " VALUES ({0}, {0}, {0}, 'superseded')"
    )
    at = datetime.now(UTC)
    serials = range(_FIRST, _FIRST + MANY)
    if running.uses_sqlite:
        text = at.isoformat(" ", "microseconds")
        rows = [(f"{each:x}", "x", text) for each in serials]
        with closing(sqlite3.connect(running.database_url.removeprefix("sqlite:///"))) as file:
            file.executemany(statement.format("?"), rows)
            file.commit()
    else:
        with psycopg.connect(running.database_url) as connection, connection.cursor() as cursor:
            cursor.executemany(
                statement.format("%s").encode(), [(f"{each:x}", "x", at) for each in serials]
            )
    return serials[-1]


def revoke(running: Running, camera: Camera) -> int:
    """Revoke a camera beside the server; return the serial number of its certificate."""
    with running.database() as database:
        revoke_device(database, camera.serial, "key_compromise")
    return certificate_serial_of(camera.response)


@pytest.mark.soak
def test_a_hundred_thousand_revocations(start_server: Start, tmp_path: Path) -> None:
    """Threat 44: served within a second, complete within ten, and never backwards.

    Three processes serve; their clock is set back an hour while devices are revoked. On SQLite it
    is the database's clock as well.
    """
    clock = FalseClock(tmp_path)
    running = start_server("--workers", "3", program=SMA, **clock.environ)
    with running.server, running.client() as client:
        cameras = [Camera.provisioned(client, new_serial()) for _ in range(4)]
        fetch_crl_with(client, revoke(running, cameras[0]), within=5)
        fetch_crl_with(client, revoke_many(running), within=60)
        took = []
        for _ in range(5):
            began = time.monotonic()
            answer = client.get(INTERMEDIATE_CRL)
            took.append(time.monotonic() - began)
        assert statistics.median(took) < 1
        assert len(x509.load_der_x509_crl(answer.content)) == MANY + 1

        stop = threading.Event()
        failures: list[BaseException] = []

        def revoke_now_and_then() -> None:
            try:
                for camera in cameras[1:]:
                    with running.client() as other:
                        fetch_crl_with(other, revoke(running, camera), within=10)
            except BaseException as error:
                failures.append(error)
            stop.set()

        revoking = threading.Thread(target=revoke_now_and_then)
        revoking.start()
        fetches = 0
        before = (0, 0, 0.0)
        while fetches < FETCHES or not stop.is_set():
            if fetches == FETCHES // 3:
                clock.set(-3600)
            with running.client() as another:  # whichever process takes the connection
                crl = fetch_crl(another)
            now = (number_of(crl), len(crl), crl.last_update_utc.timestamp())
            assert all(old <= new for old, new in zip(before, now, strict=True)), (before, now)
            before = now
            fetches += 1
            time.sleep(0.05)
        revoking.join(60)
        assert failures == []
        assert len(fetch_crl(client)) == MANY + 4  # the last fetch above may be older


def test_a_short_list_is_quick(start_server: Start) -> None:
    """Threat 44: a device that is revoked at a terminal is on the list within five seconds."""
    running = start_server("--workers", "2")
    with running.server, running.client() as client:
        for _ in range(3):
            camera = Camera.provisioned(client, new_serial())
            revoked = sma(
                *("devices", "revoke", camera.serial, "--reason", "superseded"),
                environ=running.environ,
            )
            assert revoked.returncode == 0, revoked.stderr
            fetch_crl_with(client, certificate_serial_of(camera.response), within=5)


def test_validation_goes_on_while_a_long_list_is_made(start_server: Start) -> None:
    """Threats 24 and 44: tokens are judged as ever meanwhile."""
    running = start_server("--any-core")
    with running.server, running.client() as client:
        camera = Camera.provisioned(client, new_serial())
        last = revoke_many(running)
        took: list[float] = []
        listed = False
        while not listed:
            for _ in range(20):
                began = time.monotonic()
                answer = client.post(VALIDATE, json=wire(camera.token()))
                took.append(time.monotonic() - began)
                assert answer.json()["validation_result"] == "PASS"
            crl = fetch_crl(client)
            listed = crl.get_revoked_certificate_by_serial_number(last) is not None
        assert statistics.median(took) < 1
        assert max(took) < 5


def test_a_list_that_a_verifier_has_is_not_sent_again(start_server: Start) -> None:
    """304 as long as it is the newest, and both lists come without a body for HEAD."""
    running = start_server()
    with running.server, running.client() as client:
        for path in (INTERMEDIATE_CRL, ROOT_CRL):
            first = client.get(path)
            same = client.get(path, headers={"If-None-Match": first.headers["etag"]})
            assert (same.status_code, same.content) == (304, b"")
            assert same.headers["etag"] == first.headers["etag"]
            head = client.head(path)
            assert head.headers["content-length"] == str(len(first.content))
            assert "no-cache" in head.headers["cache-control"]
        first = client.get(INTERMEDIATE_CRL)
        camera = Camera.provisioned(client, new_serial())
        fetch_crl_with(client, revoke(running, camera), within=5)
        newer = client.get(INTERMEDIATE_CRL, headers={"If-None-Match": first.headers["etag"]})
        assert newer.status_code == 200


def test_an_operator_publishes_where_no_server_runs(start_server: Start, tmp_path: Path) -> None:
    """Both lists, into files too; without the root's key that of the intermediate."""
    running = start_server()
    with running.server, running.client() as client:
        camera = Camera.provisioned(client, new_serial())
        before = {path: number_of(fetch_crl(client, path)) for path in (INTERMEDIATE_CRL, ROOT_CRL)}
    serial = revoke(running, camera)
    target = tmp_path / "lists"
    published = sma("ca", "publish-crl", "--output-dir", str(target), environ=running.environ)
    assert published.returncode == 0, published.stderr
    files = {
        INTERMEDIATE_CRL: target / "simulated-mfg-intermediate-ca.crl",
        ROOT_CRL: target / "simulated-mfg-root-ca.crl",
    }
    lists = {path: x509.load_der_x509_crl(file.read_bytes()) for path, file in files.items()}
    assert all(number_of(lists[path]) > before[path] for path in lists)
    assert lists[INTERMEDIATE_CRL].get_revoked_certificate_by_serial_number(serial) is not None
    [root_key] = running.server.data_dir.glob("simulated-mfg-root-ca*.key")
    root_key.unlink()
    again = sma("ca", "publish-crl", environ=running.environ)
    assert again.returncode == 0, again.stderr
    assert "The root's CRL is unchanged" in again.stdout
