"""`sma serve`: how it starts, and why it does not."""

import shlex
import signal
import socket
import sqlite3
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from birthmark_sma.cli.commands.serve import next_steps
from birthmark_sma.config import load_settings
from birthmark_sma.web import server
from tests.integration.cli.conftest import Place, assert_refused
from tests.support.cameras.camera import VALIDATE, Camera, wire
from tests.support.programs.server import STOP_SECONDS, Server


def test_a_newcomer_just_types_it(empty: Place) -> None:
    """On SQLite an authority that does not exist is founded first, and served on loopback."""
    with Server(empty.data_dir) as server, server.client() as client:
        assert server.url.startswith("http://127.0.0.1:")
        assert server.facts["tables"] == 2_500
        assert server.facts["keys_per_table"] == 1_000
        assert server.facts["database"] == "sqlite"
        assert client.get("/health").status_code == 200
        first = server.said().splitlines()[0]
        assert first.startswith(f"There is no authority in {empty.data_dir} yet: creating one")
        assert "SQLite" in first
        assert "DATABASE_URL" in first
        assert server.terminate() == 0


def test_the_server_never_needs_the_root_key(place: Place) -> None:
    """Threat 5: the root's key may be anywhere else, and the passphrase is needed once."""
    (place.data_dir / "simulated-mfg-root-ca.key").unlink()
    with Server(place.data_dir) as server, server.client() as client:
        (place.data_dir / "ca-password").unlink()
        camera = Camera.provisioned(client, "without-root-key")
        answer = client.post(VALIDATE, json=wire(camera.token())).json()
        assert answer["validation_result"] == "PASS"


def test_the_prototype_profile(empty: Place) -> None:
    """Ten tables of a hundred keys; the port is 5001 unless told otherwise."""
    defaults = load_settings({}, {}, prototype=True)
    assert (defaults.port, defaults.host) == (5001, "127.0.0.1")
    assert (defaults.tables, defaults.keys_per_table) == (10, 100)
    assert load_settings({"port": 7}, {}, prototype=True).port == 7
    assert load_settings({}, {"PORT": "8"}, prototype=True).port == 8
    assert load_settings({}, {}).port == 8000
    with Server(empty.data_dir, "--prototype") as server, server.client() as client:
        assert (server.facts["tables"], server.facts["keys_per_table"]) == (10, 100)
        camera = Camera.provisioned(client, "prototype")
        assert max(camera.table_keys) < 10
        body = wire(camera.token(key_index=99))
        assert client.post(VALIDATE, json=body).json()["validation_result"] == "PASS"
        assert client.post(VALIDATE, json=body | {"key_index": 100}).status_code == 400


def test_what_to_do_next_can_be_pasted(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """`make run` puts no sma on PATH, and the authority may be in another directory."""
    monkeypatch.setattr(sys, "argv", [".venv/bin/sma", "serve"])
    monkeypatch.setenv("PATH", "/nowhere")
    provision, demo = next_steps(load_settings({}, {}))
    assert provision.startswith(".venv/bin/sma provision camera-1   ")
    assert demo.startswith(".venv/bin/sma demo   ")
    monkeypatch.setattr(sys, "argv", ["birthmark_sma/__main__.py", "serve"])
    step = next_steps(load_settings({"data_dir": place.data_dir}, {}))[0].partition("   ")[0]
    words = [sys.executable, "-m", "birthmark_sma", "provision", "camera-1", "--data-dir"]
    assert shlex.split(step) == [*words, str(place.data_dir)]


def test_a_port_that_is_taken(empty: Place) -> None:
    """Nothing is founded before the port is had."""
    with socket.create_server(("127.0.0.1", 0)) as rival:
        port = str(rival.getsockname()[1])
        refused = empty.sma("serve", "--port", port)
        assert_refused(refused, 3, port, "--port")
        assert_refused(empty.sma("serve", settings={"PORT": port}), 3, port)
    assert not empty.data_dir.exists()


@pytest.mark.parametrize("command", [("serve", "--port", "0"), ("tables", "populate")])
def test_a_wrong_password(place: Place, command: tuple[str, ...]) -> None:
    refused = place.sma(*command, settings={"CA_PASSWORD": "not the password"})
    assert_refused(refused, 3, "CA_PASSWORD")
    assert "not the password" not in refused.stderr


def test_a_password_file_that_is_gone(place: Place) -> None:
    """Threat 5: a missing passphrase is an error, never an empty one."""
    (place.data_dir / "ca-password").unlink()
    assert_refused(place.sma("serve", "--port", "0"), 3, "CA_PASSWORD is not set")


def test_a_password_file_that_others_can_read(place: Place) -> None:
    """Threat 29: what others could read is no secret, and is refused with the remedy."""
    (place.data_dir / "ca-password").chmod(0o640)
    assert_refused(place.sma("serve", "--port", "0"), 3, "chmod 600")


@pytest.mark.parametrize(("revision", "remedy"), [("0000", "sma migrate"), ("9999", "newer")])
def test_a_schema_of_another_version(place: Place, revision: str, remedy: str) -> None:
    with closing(sqlite3.connect(place.data_dir / "sma.db")) as file:
        file.execute("UPDATE alembic_version SET version_num = ?", [revision])
        file.commit()
    for command in (("serve", "--port", "0"), ("devices", "list")):
        assert_refused(place.sma(*command), 4, revision, remedy)
    if revision > "0001":
        assert_refused(place.sma("migrate"), 4, revision, "newer")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1"])
def test_an_address_that_others_reach_is_refused(empty: Place, host: str) -> None:
    """Threat 22: nothing is open to the world by default; the remedy is told."""
    refused = empty.sma("serve", "--port", "0", "--host", host)
    assert_refused(refused, 3, host, "127.0.0.1", "--access open")
    assert not empty.data_dir.exists()


@pytest.mark.parametrize(
    ("arguments", "settings"),
    [
        (("--host", "0.0.0.0"), {}),
        (("--host", "::"), {}),
        ((), {"SMA_TRUSTED_PROXIES": "127.0.0.1"}),
    ],
)
def test_beyond_this_machine_no_authority_is_created(
    empty: Place, arguments: tuple[str, ...], settings: dict[str, str]
) -> None:
    """A server whose DATABASE_URL was forgotten does not create a second authority."""
    serve = ("serve", "--port", "0", "--access", "open", *arguments)
    refused = empty.sma(*serve, settings=settings)
    assert refused.returncode == 4
    assert "type: sma init" in refused.stderr.splitlines()[-1]
    assert "DATABASE_URL" in refused.stderr.splitlines()[-1]
    assert not empty.data_dir.exists()


def test_open_access_has_to_be_said_and_warns(place: Place) -> None:
    """Threat 22. `127.1` means loopback, but is not known to, so that nothing is open here."""
    with Server(place.data_dir, "--host", "127.1", "--access", "open") as server:
        assert server.url.startswith("http://127.0.0.1:")
        warning = server.said().splitlines()[0]
        assert warning.startswith("WARNING: access is open on 127.1")


@pytest.mark.parametrize(
    ("variable", "nearest"),
    [
        ("SMA_WORKER", "SMA_WORKERS"),
        ("SMA_DATADIR", "SMA_DATA_DIR"),
        ("SMA_DISCLOSE", "SMA_DISCLOSURE"),
    ],
)
def test_an_unknown_variable_names_the_nearest(empty: Place, variable: str, nearest: str) -> None:
    refused = empty.sma("serve", "--port", "0", settings={variable: "secret value"})
    assert_refused(refused, 3, f"{variable} is not a setting.", f"Did you mean {nearest}?")
    assert "secret value" not in refused.stderr


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("PORT", "eighty"),
        ("PORT", "65536"),
        ("SMA_WORKERS", "0"),
        ("SMA_DISCLOSURE", "everything"),
        ("SMA_CA_KEY_TYPE", "rsa-1024"),
        ("SMA_PUBLIC_URL", "ftp://x"),
        ("SMA_ACCESS", "closed"),
        ("SMA_ANSWER_TIMEOUT", "-1"),
    ],
)
def test_a_setting_that_cannot_be_used_is_named(empty: Place, variable: str, value: str) -> None:
    assert_refused(empty.sma("serve", settings={"PORT": "0", variable: value}), 3, variable)


def test_a_settings_file_comes_last(place: Place, tmp_path: Path) -> None:
    """A flag beats the environment, and the environment beats the file."""
    (tmp_path / "sma.toml").write_text('manufacturer_id = "From file"\n')
    config = str(tmp_path / "sma.toml")
    for environ, expected in (
        ({}, "From file"),
        ({"SMA_MANUFACTURER_ID": "From environment"}, "From environment"),
    ):
        with (
            Server(place.data_dir, environ={"SMA_CONFIG_FILE": config, **environ}) as server,
            server.client() as client,
        ):
            body = {"encrypted_nuc_hash": "a" * 96, "table_id": 0, "key_index": 0}
            answer = client.post(VALIDATE, json=body | {"nonce": "a" * 24}).json()
            assert answer["manufacturer_id"] == expected
    (tmp_path / "sma.toml").write_text("worker = 2\n")
    assert_refused(place.sma("serve", settings={"SMA_CONFIG_FILE": config}), 3, "worker", "workers")
    (tmp_path / "sma.toml").write_text("= broken")
    assert_refused(place.sma("serve", settings={"SMA_CONFIG_FILE": config}), 3, "sma.toml")
    missing = str(tmp_path / "missing.toml")
    assert_refused(place.sma("serve", settings={"SMA_CONFIG_FILE": missing}), 3, missing)


def stop_early() -> None:
    """Send SIGTERM to this process when it is about to serve."""
    run = server.run_server

    def run_after_signal(*arguments: Any) -> bool:
        signal.raise_signal(signal.SIGTERM)
        return run(*arguments)

    vars(server)["run_server"] = run_after_signal


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_stop_signal_before_the_first_request_is_not_lost(place: Place, workers: str) -> None:
    """A platform that replaces a server at once would wait for its end, and then kill it."""
    with Server(place.data_dir, "--workers", workers, before=[stop_early]) as server:
        assert server.process.wait(STOP_SECONDS) == 0
        assert "Stopped. All answers are recorded." in server.said()


def expect_slow_start() -> None:
    """Let the supervisor wait no longer for its workers than they take."""
    vars(server)["_START_SECONDS"] = 0.0


def test_workers_that_start_late_are_announced(place: Place) -> None:
    """As after a start in an outage: a program that waits for the URL would wait for ever."""
    with Server(place.data_dir, "--workers", "2", before=[expect_slow_start]) as server:
        assert server.url.startswith("http://127.0.0.1:")
        assert server.terminate() == 0
