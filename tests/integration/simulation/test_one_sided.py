"""One end alone: a camera that sends to somebody's server, a server that takes from cameras."""

import hashlib
import json
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from birthmark_sma.cli import exit_codes
from birthmark_sma.device import UNSEALED, Enrolment, start_camera
from birthmark_sma.simulation.expected_outcomes import BY_ONE_CAMERA
from birthmark_sma.simulation.fleet import memory_directory
from tests.support.http.ports import closed_port
from tests.support.programs.commands import sma
from tests.support.programs.running import Running, new_serial, start
from tests.support.programs.server import SMA, server_environ

JSON = {"Content-Type": "application/json"}


@contextmanager
def played_aggregator(running: Running, *arguments: str) -> "Iterator[tuple[str, Any]]":
    """A simulated aggregation server, and its process."""
    process = subprocess.Popen(
        [*SMA, "simulate", "aggregator", running.server.url, "--port", "0", "--json", *arguments],
        env=running.environ,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        facts = "".join(process.stdout.readline() for _ in range(3))
        yield json.loads(facts)["url"], process
    finally:
        process.kill()
        process.communicate()


def test_a_camera_sends_to_a_server(running: Running) -> None:
    """Both ends, over HTTP: each case ends as it should, and the count ends the server."""
    with played_aggregator(running, "--count", str(len(BY_ONE_CAMERA))) as (url, process):
        sent = sma(
            "simulate", "camera", running.server.url, "--to", f"{url}/bundles", "--case", "all",
            "--pictures", str(len(BY_ONE_CAMERA)), "--interval", "0", "--json",
            environ=running.environ,
        )  # fmt: skip
        assert sent.returncode == 0, sent.stderr + sent.stdout
        bundles = json.loads(sent.stdout)["bundles"]
        assert [each["case"] for each in bundles] == list(BY_ONE_CAMERA)
        assert all(each["ending"] in each["right"] for each in bundles)
        assert {each["status"] for each in bundles if each["ending"] == "duplicate"} == {409}
        assert process.wait(30) == 0


def test_what_is_no_bundle(running: Running) -> None:
    with played_aggregator(running) as (url, process):
        declared = {"Content-Type": "application/json; charset=utf-8"}
        for body, status in ((b"{}", 422), (b"\0" * 40_000, 413), (b"[" * 20_000, 422)):
            answer = httpx2.post(f"{url}/bundles", content=body, headers=declared)
            assert answer.status_code == status
        assert httpx2.post(f"{url}/bundles", content=b"{}").status_code == 415
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0


def test_a_bundle_is_taken_once(running: Running, tmp_path: Path) -> None:
    """The answer names the bundle that came, whatever the sender says of it."""
    enrolment = Enrolment(running.server.url, new_serial(), "Test")
    with start_camera(tmp_path / "camera", sealing=UNSEALED, enrolment=enrolment) as camera:
        bundle = camera.capture(b"a picture")
    with played_aggregator(running) as (url, _):
        answers = [
            httpx2.post(
                f"{url}/bundles",
                content=bundle.to_json(),
                headers=JSON | {"Idempotency-Key": "another"},
            )
            for _ in range(2)
        ]
    assert [each.status_code for each in answers] == [200, 409]
    assert {each.json()["bundle_id"] for each in answers} == {
        hashlib.sha256(bundle.content.signed_bytes()).hexdigest()
    }


def test_a_directory_that_is_named_stays(running: Running, tmp_path: Path) -> None:
    """And a second run does not take what is in it for its own."""
    camera = ("simulate", "camera", running.server.url, "--pictures", "1", "--directory")
    directory = tmp_path / "camera"
    assert sma(*camera, str(directory), environ=running.environ).returncode == 0
    assert (directory / "camera-00000" / "camera.json").exists()
    again = sma(*camera, str(directory), environ=running.environ)
    assert again.returncode == 3
    assert "is not empty" in again.stderr


def test_a_camera_to_nobody(running: Running) -> None:
    sent = sma(
        "simulate", "camera", running.server.url, "--pictures", "1",
        "--to", f"http://127.0.0.1:{closed_port()}/bundles", environ=running.environ,
    )  # fmt: skip
    assert sent.returncode == 1
    assert "1 of 1 bundle got a wrong response" in sent.stderr


@pytest.fixture
def with_keys(tmp_path: Path) -> "Iterator[tuple[Running, dict[str, str]]]":
    """An authority that asks for keys, withholds serials, and answers each caller once."""
    environ = server_environ(tmp_path / "data")
    assert sma("init", environ=environ).returncode == 0
    keys = {}
    for name, scope in (("line", "provision"), ("first", "validate"), ("second", "validate")):
        made = sma("keys", "create", name, "--scope", scope, "--json", environ=environ)
        assert made.returncode == 0, made.stderr
        keys[name] = json.loads(made.stdout)["key"]
    running = start(
        tmp_path / "data", "sqlite:", SMA_ACCESS="keys", SMA_REPLAY="refuse-same-caller",
        SMA_DISCLOSURE="none",
    )  # fmt: skip
    with running.server:
        yield running, keys


FLEET = ("--cameras", "6", "--duration", "1", "--rate", "60", "--replays", "0.3", "--seed", "4")


def test_keys_and_what_was_agreed_on(
    with_keys: tuple[Running, dict[str, str]], tmp_path: Path
) -> None:
    """Threats 17, 20 and 22: each server has its key, serials are withheld, repeats are refused."""
    running, keys = with_keys
    environ = running.environ | {
        "BIRTHMARK_ENROLMENT_KEY": keys["line"],
        "BIRTHMARK_VALIDATE_KEYS": f"{keys['first']} {keys['second']}",
    }
    fleet = ("simulate", "fleet", running.server.url, *FLEET, "--json")
    done = sma(*fleet, environ=environ)
    assert done.returncode == 0, done.stderr + done.stdout[-2000:]
    report = json.loads(done.stdout)
    assert report["surroundings"] == {
        "discloses_serials": False,
        "answers_repeats": False,
        "reports_to_authority": False,
    }
    ended = {each["case"]: set(each["ended"]) for each in report["cases"]}
    assert ended["reused camera token"] == ended["borrowed camera token"] == {"already submitted"}
    for each in keys.values():
        assert each not in done.stdout + done.stderr
    for name in ("line", "first"):
        (tmp_path / name).write_text(keys[name])
        (tmp_path / name).chmod(0o600)
    files = ("--enrolment-key-file", str(tmp_path / "line"))
    shared = sma(
        *fleet, *files, "--validate-key-file", str(tmp_path / "first"), environ=running.environ
    )
    assert shared.returncode == 3
    assert "Give each one its own key" in shared.stderr
    wrong = environ | {"BIRTHMARK_VALIDATE_KEYS": "sma_wrong"}
    assert "not_allowed" in sma(*fleet, environ=wrong).stderr
    missing = sma(*fleet, environ=running.environ)
    assert missing.returncode == 6
    assert "401" in missing.stderr


def test_a_serial_is_taken_once(running: Running) -> None:
    serial = new_serial()
    camera = ("simulate", "camera", running.server.url, "--pictures", "1", "--serial", serial)
    assert sma(*camera, environ=running.environ).returncode == 0
    again = sma(*camera, environ=running.environ)
    assert again.returncode == 6
    assert "already provisioned" in again.stderr


def test_what_cameras_keep_in_memory_is_private_and_goes() -> None:
    """Threat 29."""
    with memory_directory() as place:
        assert place.stat().st_mode & 0o777 == 0o700
        (place / "file").touch()
    assert not place.exists()


@pytest.mark.parametrize("command", ["fleet", "camera", "aggregator"])
def test_an_authority_that_is_away_has_the_exit_code_of_a_connection(
    tmp_path: Path, command: str
) -> None:
    url = f"http://127.0.0.1:{closed_port()}"
    away = sma("simulate", command, url, environ=server_environ(tmp_path))
    assert away.returncode == exit_codes.DATABASE, away.stdout
    assert away.stderr == f"sma: No authority answers at {url}. Start it, or correct the URL.\n"
