"""`sma secrets`: what is told of them, and how they are changed."""

import json
import os
import pty
import select
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from birthmark_sma.cli.main import app
from birthmark_sma.config import SECRET_FIELDS
from tests.integration.cli.conftest import Place, assert_refused
from tests.support.programs.commands import sma
from tests.support.programs.running import query
from tests.support.programs.server import PASSPHRASE, SMA, server_environ

OTHER = "another passphrase for tests alone"


def test_what_is_in_order_is_told(place: Place) -> None:
    """Everything is opened, and what an operator should know is said without an alarm."""
    checked = place.sma("secrets", "check", "--json")
    assert checked.returncode == 0, checked.stderr
    told = json.loads(checked.stdout)
    assert told["ok"]
    assert told["findings"] == []
    assert told["opened"] == {
        "key tables": 2_500,
        "earlier table keys": 0,
        "CA key": 1,
        "first answers": 0,
    }
    assert told["keys"][0]["key_tables"] == 2_500
    text = place.sma("secrets", "check").stdout
    assert "No fault was found." in text
    passphrase = (place.data_dir / "ca-password").read_text().strip()
    assert passphrase not in text + checked.stdout


@pytest.mark.parametrize(
    ("name", "do"),
    [("sma.db", "chmod 600"), ("simulated-mfg-root-ca.key", "chmod 600"), ("", "chmod 700")],
)
def test_what_others_can_read_is_found(place: Place, name: str, do: str) -> None:
    """Threat 29: with what to type."""
    (place.data_dir / name).chmod(0o755 if not name else 0o644)
    checked = place.sma("secrets", "check")
    assert checked.returncode == 1
    assert f"{do} {place.data_dir / name}" in checked.stdout


def test_a_table_that_does_not_open_is_found(place: Place) -> None:
    with sqlite3.connect(place.data_dir / "sma.db") as database:
        database.execute("UPDATE key_tables SET master_key = zeroblob(60) WHERE table_id = 7")
    checked = place.sma("secrets", "check", "--json")
    assert checked.returncode == 1
    told = json.loads(checked.stdout)
    assert "table 7" in told["findings"][0]["what"]
    assert told["opened"]["key tables"] == 2_499


def test_a_short_passphrase_is_found(tmp_path: Path) -> None:
    place = Place(tmp_path / "data")
    environ = {"CA_PASSWORD": "correct horse", "SMA_TABLES": "3", "SMA_KEYS_PER_TABLE": "5"}
    assert place.sma("init", settings=environ).returncode == 0
    checked = place.sma("secrets", "check", settings=environ)
    assert checked.returncode == 1
    assert "CA_PASSWORD is short" in checked.stdout
    assert "correct horse" not in checked.stdout


@pytest.mark.parametrize("passphrase", ["a", "Summer2026!!"])
def test_no_rotation_to_an_easy_passphrase(place: Place, passphrase: str) -> None:
    """Threat 43: refused before anything is changed."""
    files = {each: each.read_bytes() for each in place.data_dir.glob("[!s]*")}
    rotated = place.sma("secrets", "rotate", settings={"SMA_NEW_CA_PASSWORD": passphrase})
    assert_refused(rotated, 3, "The new passphrase", "Nothing was changed")
    assert {each: each.read_bytes() for each in place.data_dir.glob("[!s]*")} == files
    assert place.sma("secrets", "check").returncode == 0


def test_leftovers_of_a_rotation_are_found(place: Place) -> None:
    (place.data_dir / "ca-password.old").touch(0o600)
    checked = place.sma("secrets", "check")
    assert checked.returncode == 1
    assert "ca-password.old was left behind" in checked.stdout


def test_a_rotation_is_told(place: Place) -> None:
    """With what is left under the old key: nothing. The new passphrase is in its place."""
    old = (place.data_dir / "ca-password").read_text()
    rotated = place.sma("secrets", "rotate")
    assert rotated.returncode == 0, rotated.stderr
    assert "Key 2, from the passphrase, is now used." in rotated.stdout
    assert f"The old secret is kept in {place.data_dir / 'ca-password'}.previous" in rotated.stderr
    assert (place.data_dir / "ca-password.previous").read_text() == old
    assert (place.data_dir / "ca-password").read_text() != old
    assert place.sma("secrets", "check").returncode == 0
    refused = place.sma("secrets", "check", settings={"CA_PASSWORD": old.strip()})
    assert_refused(refused, 3, "CA_PASSWORD")
    export = place.sma("ca", "export", "--output-dir", str(place.data_dir.parent / "ca"))
    assert export.returncode == 0, export.stderr


def test_what_is_lost_is_said_before(place: Place, tmp_path: Path) -> None:
    """Threat 47: before anything is changed, where the old secret is somebody's to keep."""
    key = tmp_path / "kek"
    key.touch(0o600)
    key.write_text("ab" * 32)
    rotated = place.sma("secrets", "rotate", "--new-kek-file", str(key))
    assert rotated.returncode == 0, rotated.stderr
    assert "can be opened only with the old secret" in rotated.stderr
    assert "Keep it as long as these backups" in rotated.stderr
    assert not (place.data_dir / "ca-password.previous").exists()


def test_earlier_passphrases_are_forgotten_when_told(place: Place) -> None:
    """Threat 47: what becomes impossible is said first."""
    previous = place.data_dir / "ca-password.previous"
    assert "There is no old passphrase" in place.sma("secrets", "forget-previous").stdout
    assert place.sma("secrets", "rotate").returncode == 0
    assert "forget-previous" in place.sma("secrets", "check").stdout
    refused = place.sma("secrets", "forget-previous")
    assert refused.returncode == 2
    assert "no backup from before" in " ".join(refused.stderr.split())
    assert previous.exists()
    forgotten = place.sma("secrets", "forget-previous", "--yes")
    assert forgotten.returncode == 0, forgotten.stderr
    assert not previous.exists()
    assert place.sma("secrets", "check").returncode == 0


def all_flags(command: Any) -> Iterator[str]:
    """Every flag of a command and of those below it."""
    for parameter in command.params:
        yield from parameter.opts
    for below in getattr(command, "commands", {}).values():
        yield from all_flags(below)


def test_no_secret_has_a_flag() -> None:
    """Threat 28: it would be seen by everyone on the machine. The contract names one exception."""
    flags = {*all_flags(typer.main.get_command(app))}
    assert flags >= {"--new-kek-file", "--database-url", "--tls-cert"}
    secret = {f"--{name.replace('_', '-')}" for name in (*SECRET_FIELDS, "new_ca_password")}
    assert flags & secret == {"--database-url"}


def test_a_password_in_the_one_exception_is_warned_of(place: Place) -> None:
    """The command does what it should; the sentence says where the password belongs."""
    told = place.sma("devices", "list", "--database-url", "postgresql://sma:n33dle@localhost:1/sma")
    assert told.stderr.startswith("WARNING: ")
    assert "DATABASE_URL" in told.stderr
    assert "n33dle" not in told.stdout + told.stderr


def test_without_a_terminal_nobody_is_asked(postgres_url: str, tmp_path: Path) -> None:
    environ = server_environ(tmp_path / "data", postgres_url)
    small = {"SMA_TABLES": "3", "SMA_KEYS_PER_TABLE": "5"}
    assert sma("init", environ=environ | small).returncode == 0
    assert_refused(sma("secrets", "rotate", environ=environ), 3, "SMA_NEW_CA_PASSWORD")
    wrong = environ | {"CA_PASSWORD": "wr0ng", "SMA_NEW_CA_PASSWORD": OTHER}
    assert_refused(sma("secrets", "rotate", environ=wrong), 3, "CA_PASSWORD")
    assert query(postgres_url, "SELECT kek_id FROM key_encryption_keys") == [(1,)]


def test_at_a_terminal_the_new_passphrase_is_asked_for(postgres_url: str, tmp_path: Path) -> None:
    """Twice, and without showing it."""
    environ = server_environ(tmp_path / "data", postgres_url)
    small = {"SMA_TABLES": "3", "SMA_KEYS_PER_TABLE": "5"}
    assert sma("init", environ=environ | small).returncode == 0
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [*SMA, "secrets", "rotate"],
        env=environ,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    said, typed, deadline = b"", 0, time.monotonic() + 60
    while time.monotonic() < deadline:
        if not select.select([ours], [], [], 1)[0]:
            if process.poll() is not None:
                break
            continue
        try:
            part = os.read(ours, 4096)
        except OSError:
            break
        said += part
        if said.count(b"assphrase") + said.count(b"epeat") > typed and typed < 2:
            time.sleep(0.2)
            os.write(ours, OTHER.encode() + b"\n")
            typed += 1
    os.close(ours)
    assert process.wait(30) == 0, said
    assert OTHER.encode() not in said
    checked = sma("secrets", "check", environ=environ | {"CA_PASSWORD": OTHER})
    assert checked.returncode == 0, checked.stdout
    assert_refused(sma("secrets", "check", environ=environ), 3)
    assert PASSPHRASE != OTHER
