"""`sma provision`: the files of one device, whole or not at all."""

import json
import os
import re
import shutil
import signal
import stat
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from birthmark_sma.protocol import camera_token, key_derivation
from tests.integration.cli.conftest import Place, assert_refused
from tests.support.cameras.camera import wire
from tests.support.programs.commands import Background
from tests.support.programs.kill_points import count_steps, die_before_step
from tests.support.programs.running import query
from tests.support.programs.server import server_environ

SERIAL = "RaspberryPi-Prototype-001"
FILES = {
    "device_private_key.pem",
    "device_certificate.pem",
    "certificate_chain.pem",
    "provisioning_data.json",
}


def assert_complete(output: Path) -> dict[str, object]:
    """All four files are there, private, and belong together; return the data."""
    assert {file.name for file in output.iterdir()} == FILES
    for file in output.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file.name
    assert stat.S_IMODE(output.stat().st_mode) == 0o700
    private = (output / "device_private_key.pem").read_bytes()
    key = serialization.load_pem_private_key(private, None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    certificate = x509.load_pem_x509_certificate((output / "device_certificate.pem").read_bytes())
    assert certificate.public_key() == key.public_key()
    data: dict[str, object] = json.loads((output / "provisioning_data.json").read_text())
    return data


def registered(place: Place) -> list[tuple[object, ...]]:
    """Serial and provisioning id of each device."""
    return query(
        f"sqlite:///{place.data_dir / 'sma.db'}",
        "SELECT device_serial, provisioning_id FROM registered_devices ORDER BY 1",
    )


def test_the_files_of_the_contract(place: Place, tmp_path: Path) -> None:
    """Threat 29: four private files, and everything once more in the JSON alone."""
    output = tmp_path / "provisioned_devices" / "pi-001"
    made = place.sma("provision", SERIAL, "--output-dir", str(output))
    assert made.returncode == 0, made.stderr
    assert f"{SERIAL} is provisioned." in made.stdout
    data = assert_complete(output)
    assert set(data) >= {
        "device_serial",
        "nuc_hash",
        "table_assignments",
        "master_keys",
        "provisioned_at",
        "manufacturer_id",
        "device_family",
        "device_certificate",
        "certificate_chain",
        "device_private_key",
        "device_public_key",
    }
    assert data["device_serial"] == SERIAL
    assert data["device_family"] == "Raspberry Pi"
    assert data["manufacturer_id"] == "SimulatedMfg"
    assert re.fullmatch("[0-9a-f]{64}", str(data["nuc_hash"]))
    tables = data["table_assignments"]
    assert isinstance(tables, list)
    assert tables == sorted(set(tables))
    assert len(tables) == 3
    keys = data["master_keys"]
    assert isinstance(keys, dict)
    assert list(keys) == [str(table) for table in tables]
    assert all(re.fullmatch("[0-9a-f]{64}", key) for key in keys.values())
    assert str(data["provisioned_at"]).endswith("Z")
    for field in ("device_certificate", "certificate_chain", "device_private_key"):
        assert data[field] == (output / f"{field}.pem").read_text()
    for secret in (str(data["nuc_hash"]), *keys.values()):
        assert secret not in made.stdout

    chain = x509.load_pem_x509_certificates((output / "certificate_chain.pem").read_bytes())
    names = [each.subject.rfc4514_string().split(",")[0] for each in chain]
    assert names == [
        f"CN={SERIAL}",
        "CN=Simulated Mfg Intermediate CA",
        "CN=Simulated Mfg Root CA",
    ]
    exported = tmp_path / "ca"
    assert place.sma("ca", "export", "--output-dir", str(exported)).returncode == 0
    root = exported / "simulated-mfg-root-ca.crt"
    chain_file = output / "certificate_chain.pem"
    judged = subprocess.run(
        [
            "openssl",
            "verify",
            "-x509_strict",
            "-CAfile",
            str(root),
            "-untrusted",
            str(chain_file),
            str(chain_file),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert judged.stdout == f"{chain_file}: OK\n", judged.stderr

    # What the files hold makes a token that passes, which `sma validate` reads from its input.
    table = tables[1]
    token = camera_token.seal(
        bytes.fromhex(str(data["nuc_hash"])),
        key=key_derivation.derive_key(bytes.fromhex(keys[str(table)]), 5),
        table_id=table,
        key_index=5,
        nonce=os.urandom(12),
    )
    judged_token = place.sma("validate", "-", "--json", stdin=json.dumps(wire(token)))
    assert json.loads(judged_token.stdout)["device_serial"] == SERIAL


def test_files_are_never_overwritten(place: Place, tmp_path: Path) -> None:
    output = tmp_path / "pi"
    output.mkdir()
    (output / "notes.txt").write_text("mine")
    assert_refused(place.sma("provision", "a", "--output-dir", str(output)), 3, "not empty")
    assert [file.name for file in output.iterdir()] == ["notes.txt"]
    assert registered(place) == []
    (output / "notes.txt").unlink()
    assert place.sma("provision", "a", "--output-dir", str(output)).returncode == 0
    before = {file.name: file.read_bytes() for file in output.iterdir()}
    assert_refused(place.sma("provision", "b", "--output-dir", str(output)), 3, "not empty")
    assert {file.name: file.read_bytes() for file in output.iterdir()} == before


def test_a_finished_run_is_repeated_without_a_change(place: Place, tmp_path: Path) -> None:
    output = tmp_path / "pi"
    command = ("provision", SERIAL, "--output-dir", str(output))
    first = json.loads(place.sma(*command, "--json").stdout)
    before = {file.name: file.read_bytes() for file in output.iterdir()}
    again = place.sma(*command)
    assert again.returncode == 0, again.stderr
    assert f"{SERIAL} is provisioned already. Nothing was changed." in again.stdout
    assert json.loads(place.sma(*command, "--json").stdout) == first
    assert {file.name: file.read_bytes() for file in output.iterdir()} == before
    assert registered(place) == [(SERIAL, first["provisioning_id"])]


@pytest.mark.parametrize("name", sorted(FILES))
@pytest.mark.parametrize("fault", ["missing", "of another device"])
def test_files_that_are_not_complete_are_not_finished(
    place: Place, tmp_path: Path, name: str, fault: str
) -> None:
    output, other = tmp_path / "pi", tmp_path / "other"
    assert place.sma("provision", "a", "--output-dir", str(output)).returncode == 0
    (output / name).unlink()
    if fault == "of another device":
        assert place.sma("provision", "b", "--output-dir", str(other)).returncode == 0
        shutil.copy2(other / name, output / name)
    refused = place.sma("provision", "a", "--output-dir", str(output))
    assert_refused(refused, 3, "not empty")


def test_files_of_another_authority_are_not_finished(
    place: Place, founded_place: Place, tmp_path: Path
) -> None:
    output = tmp_path / "pi"
    assert place.sma("provision", "a", "--output-dir", str(output)).returncode == 0
    refused = founded_place.sma("provision", "a", "--output-dir", str(output))
    assert_refused(refused, 3, "not empty")


def test_a_serial_that_exists_leaves_no_files(place: Place, tmp_path: Path) -> None:
    assert place.sma("provision", "a", "--output-dir", str(tmp_path / "one")).returncode == 0
    refused = place.sma("provision", "a", "--output-dir", str(tmp_path / "two"))
    assert_refused(refused, 5, "Device already provisioned")
    assert not [file for file in tmp_path.iterdir() if "two" in file.name]


@pytest.mark.parametrize("serial", ["x" * 65, "", "line\nbreak"])
def test_a_serial_that_is_refused_leaves_no_files(
    founded_place: Place, tmp_path: Path, serial: str
) -> None:
    refused = founded_place.sma("provision", serial, "--output-dir", str(tmp_path / "pi"))
    assert_refused(refused, 6, "device serial")
    assert list(tmp_path.iterdir()) == []


def test_the_default_place_and_json(place: Place, tmp_path: Path) -> None:
    made = place.sma("provision", "lab/7", "--family", "Lab", "--json", cwd=tmp_path)
    told = json.loads(made.stdout)
    assert told["device_serial"] == "lab/7"
    output = tmp_path / "provisioned_devices" / "lab%2F7"
    assert tmp_path / told["output_dir"] == output
    assert assert_complete(output)["device_family"] == "Lab"


@pytest.mark.parametrize("serial", [".", ".."])
def test_a_serial_never_leads_out_of_the_default_place(
    place: Place, tmp_path: Path, serial: str
) -> None:
    elsewhere = tmp_path / "empty" / "inner"
    elsewhere.mkdir(parents=True)
    place.sma("provision", serial, cwd=elsewhere)
    names = {path.name for path in (tmp_path / "empty").rglob("*") if path.is_file()}
    outside = {f.name for f in elsewhere.iterdir() if f.name != "provisioned_devices"}
    assert outside == set(), names
    assert not FILES & {f.name for f in (elsewhere / "provisioned_devices").glob("*")}


@pytest.mark.parametrize("database", ["none", "empty file"])
def test_no_authority_is_created(empty: Place, tmp_path: Path, database: str) -> None:
    """A device of an authority that was made by mistake would pass nowhere."""
    if database == "empty file":
        empty.data_dir.mkdir(mode=0o700)
        (empty.data_dir / "sma.db").touch(0o600)
    refused = empty.sma("provision", "a", "--output-dir", str(tmp_path / "out"))
    assert_refused(refused, 4, "sma init")
    devices = tmp_path / "devices.csv"
    devices.write_text("device_serial,device_family\na,b\n")
    batch = ("provision-batch", str(devices), "--output", str(tmp_path / "results.jsonl"))
    assert_refused(empty.sma(*batch, "--make-keys"), 4, "sma init")
    assert {each.name for each in tmp_path.iterdir()} <= {"data", "devices.csv"}
    if database == "none":
        assert not empty.data_dir.exists()


def test_a_run_that_was_killed_is_simply_run_again(place: Place, tmp_path: Path) -> None:
    """Threats 8 and 29: killed at points between, it leaves all files or none, and resumes.

    Threat 8: the serial is not lost, although the first run's answer is.
    """
    parent = tmp_path / "devices"

    def provision(serial: str, before: Callable[[], None]) -> Background:
        run = Background(
            *("provision", serial, "--output-dir", str(parent / serial)),
            environ=server_environ(place.data_dir),
            before=[before],
        )
        run.communicate()
        return run

    parent.mkdir()
    marks = tmp_path / "marks"
    assert provision("whole", partial(count_steps, parent, marks)).returncode == 0
    steps = marks.stat().st_size
    assert steps >= 15
    shutil.rmtree(parent / "whole")
    points = sorted({4, steps // 3, steps // 2, steps - 2, steps})
    for point in points:
        serial = f"killed-{point}"
        killed = provision(serial, partial(die_before_step, parent, point))
        assert killed.returncode == -signal.SIGKILL
        output = parent / serial
        if output.exists():
            assert_complete(output)
            continue
        again = place.sma("provision", serial, "--output-dir", str(output))
        assert again.returncode == 0, again.stderr
        data = assert_complete(output)
        assert [(serial, data["provisioning_id"])] == [
            row for row in registered(place) if row[0] == serial
        ]
    assert {file.name for file in parent.iterdir()} == {f"killed-{point}" for point in points}
