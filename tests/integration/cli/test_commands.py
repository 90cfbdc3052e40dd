"""The other commands: validate, devices, tables, ca, version, demo, and what all have in common."""

import json
import platform
import re
import resource
import shutil
import socket
import sqlite3
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import typer
from cryptography import x509

from birthmark_sma import __version__
from birthmark_sma.cli.administration.choice import SERVER_FLAGS
from birthmark_sma.cli.main import app
from birthmark_sma.config import SECRET_FIELDS, Settings
from tests.integration.cli.conftest import Place, assert_refused
from tests.support.cameras.camera import Camera, wire
from tests.support.programs.commands import sma
from tests.support.programs.server import Server, server_environ

HELP_SECONDS = 0.4


@pytest.fixture(scope="module")
def fleet(
    tmp_path_factory: pytest.TempPathFactory, founded_place: Place
) -> tuple[Place, list[Camera]]:
    """An authority with three devices, `a`, `b` and `c c`; tests leave them active."""
    data_dir = tmp_path_factory.mktemp("fleet") / "data"
    place = Place(data_dir)
    with Server(data_dir) as server, server.client() as client:
        cameras = [Camera.provisioned(client, serial) for serial in ("a", "b", "c c")]
    return place, cameras


@pytest.fixture
def copied_fleet(fleet: tuple[Place, list[Camera]], tmp_path: Path) -> Place:
    """A copy of that authority, which a test may change."""
    shutil.copytree(fleet[0].data_dir, tmp_path / "data")
    return Place(tmp_path / "data")


# --- validate


def test_validate_tells_the_reason(fleet: tuple[Place, list[Camera]], tmp_path: Path) -> None:
    """Exit code 0 for PASS, 1 for FAIL with the reason that callers of the API never see."""
    place, [camera, *_] = fleet
    file = tmp_path / "token.json"
    file.write_text(json.dumps(wire(camera.token())))
    passed = place.sma("validate", str(file), "--json")
    assert passed.returncode == 0, passed.stderr
    answer = json.loads(passed.stdout)
    assert answer["validation_result"] == "PASS"
    assert answer["reason"] == "genuine"
    assert (answer["device_serial"], answer["device_family"]) == ("a", "Test")
    assert answer["timestamp"].endswith("Z")

    stranger = json.dumps(wire(camera.token(nuc_hash=bytes(32))))
    failed = place.sma("validate", "-", stdin=stranger)
    assert failed.returncode == 1
    assert "FAIL" in failed.stdout
    assert "unknown_device" in failed.stdout
    nowhere = json.dumps(wire(camera.token()) | {"table_id": 2_500})
    assert place.sma("validate", "-", stdin=nowhere).returncode == 1

    with closing(sqlite3.connect(place.data_dir / "sma.db")) as database:
        rows = database.execute(
            "SELECT reason, request_ip FROM validation_history ORDER BY id"
        ).fetchall()
    assert rows == [
        ("genuine", None),
        ("unknown_device", None),
        ("unknown_table", None),
    ]


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"nonce": 5}', "\ud800", "null"])
def test_a_malformed_token_is_refused(founded_place: Place, tmp_path: Path, content: str) -> None:
    file = tmp_path / "token.json"
    file.write_bytes(content.encode("utf-8", "surrogatepass"))
    assert_refused(founded_place.sma("validate", str(file)), 6, "malformed")


def test_a_token_file_that_is_not_there(founded_place: Place, tmp_path: Path) -> None:
    refused = founded_place.sma("validate", str(tmp_path / "missing.json"))
    assert refused.returncode == 2
    assert "missing.json" in refused.stderr
    assert "Traceback" not in refused.stderr


# --- devices


def test_devices_are_listed_and_shown(fleet: tuple[Place, list[Camera]]) -> None:
    place, cameras = fleet
    listed = json.loads(place.sma("devices", "list", "--json").stdout)
    assert listed["total"] == 3
    assert [device["device_serial"] for device in listed["devices"]] == ["a", "b", "c c"]
    page = place.sma("devices", "list", "--limit", "2")
    assert "3 in all" in page.stdout
    assert "--after 'b'" in page.stdout
    rest = json.loads(place.sma("devices", "list", "--after", "b", "--json").stdout)
    assert [device["device_serial"] for device in rest["devices"]] == ["c c"]

    shown = json.loads(place.sma("devices", "show", "c c", "--json").stdout)
    assert shown["status"] == "active"
    assert shown["provisioning_id"] == cameras[2].response["provisioning_id"]
    assert shown["table_assignments"] == cameras[2].response["table_assignments"]
    text = place.sma("devices", "show", "c c").stdout
    assert "certificate  c c" in text


def test_an_unknown_device_is_no_verdict(founded_place: Place) -> None:
    """Exit code 1 says FAIL, or that a demonstration went wrong, and nothing else."""
    refused = founded_place.sma("devices", "show", "nobody")
    assert refused.stderr == "sma: No device nobody is registered.\n"
    assert refused.returncode not in {0, 1, 2}


def test_no_devices(founded_place: Place) -> None:
    assert founded_place.sma("devices", "list").stdout == "No devices are registered.\n"


def test_a_device_is_suspended_reinstated_and_revoked(place: Place) -> None:
    """Threats 6 and 40: it fails from that moment on, whichever way its name is typed."""
    with Server(place.data_dir) as server, server.client() as client:
        camera = Camera.provisioned(client, "x")

    def verdict() -> tuple[int, str]:
        result = place.sma("validate", "-", "--json", stdin=json.dumps(wire(camera.token())))
        return result.returncode, json.loads(result.stdout)["reason"]

    assert verdict() == (0, "genuine")
    assert "reinstate 'x'" in place.sma("devices", "suspend", "X").stdout
    assert verdict() == (1, "device_suspended")
    assert place.sma("devices", "reinstate", "x").returncode == 0
    assert verdict() == (0, "genuine")
    assert_refused(place.sma("devices", "revoke", "x", "--reason", "boredom"), 5, "key_compromise")
    assert place.sma("devices", "revoke", "x", "--reason", "key_compromise").returncode == 0
    assert verdict() == (1, "device_revoked")
    assert_refused(place.sma("devices", "reinstate", "x"), 5, "revoked")
    shown = json.loads(place.sma("devices", "show", "\uff38", "--json").stdout)
    assert (shown["device_serial"], shown["status"]) == ("x", "revoked")


def test_a_device_is_re_enrolled(place: Place, tmp_path: Path) -> None:
    """By the files that the command writes, once for each permission."""
    first = tmp_path / "first"
    assert place.sma("provision", "x", "--output-dir", str(first)).returncode == 0
    old = json.loads(place.sma("devices", "show", "x", "--json").stdout)
    assert old["re_enrolment_allowed_until"] is None
    again = ("provision", "x", "--output-dir", str(tmp_path / "second"))
    assert_refused(place.sma(*again), 5, "already provisioned")

    allowed = place.sma("devices", "re-enrol", "X", "--for", "12h")
    assert "x may be provisioned once more" in allowed.stdout
    assert "re-enrolment" in place.sma("devices", "show", "x").stdout
    for _ in range(2):
        withdrawn = place.sma("devices", "re-enrol", "x", "--cancel")
        assert withdrawn.stdout == "x has no permission to be re-enrolled.\n"
    assert_refused(place.sma(*again), 5, "already provisioned")

    told = json.loads(place.sma("devices", "re-enrol", "x", "--json").stdout)
    assert told["device_serial"] == "x"
    assert told["allowed_until"] > told["opened_at"]
    made = place.sma(*again)
    assert made.returncode == 0, made.stderr
    new = json.loads(place.sma("devices", "show", "x", "--json").stdout)
    assert new["table_assignments"] == old["table_assignments"]
    [earlier] = new["earlier_certificates"]
    assert earlier["certificate_serial"] == old["certificate_serial"] != new["certificate_serial"]
    assert earlier["revocation_reason"] == "superseded"
    assert earlier["replaced_by"] == told["actor"]
    text = place.sma("devices", "show", old["certificate_serial"].upper()).stdout
    assert "revoked: superseded" in text
    assert_refused(place.sma("provision", "x", "--output-dir", str(tmp_path / "third")), 5)


@pytest.mark.parametrize(
    ("period", "reason"), [("soon", "12h"), ("0", "a second"), ("91d", "90 days"), ("5", "12h")]
)
def test_a_permission_has_an_end(place: Place, period: str, reason: str) -> None:
    refused = place.sma("devices", "re-enrol", "x", "--for", period)
    assert refused.returncode == 2
    assert reason in refused.stderr


@pytest.mark.parametrize(
    "command",
    [
        ("devices", "re-enrol", "a", "--for"),
        ("devices", "list", "--expiring-within"),
        ("renewals", "order", "--all", "--dry-run", "--within"),
        ("tables", "rotate", "0", "--dry-run", "--accept-earlier-for"),
        ("keys", "create", "another", "--scope", "validate", "--expires"),
        ("keys", "rotate", "newsroom", "--grace"),
    ],
)
def test_all_commands_take_the_same_units(copied_fleet: Place, command: tuple[str, ...]) -> None:
    copied_fleet.sma("keys", "create", "newsroom", "--scope", "validate")
    for unit in "smhdw":
        done = copied_fleet.sma(*command, f"2{unit}")
        assert done.returncode == 0, done.stderr
        copied_fleet.sma("keys", "revoke", "another")


def test_all_acts_name_who_did_them(copied_fleet: Place) -> None:
    """As user@host. With sudo, the user is who typed it."""

    def act(*command: str) -> dict[str, Any]:
        done = copied_fleet.sma(*command, "--json", settings={"SUDO_USER": "olga"})
        return dict(json.loads(done.stdout))

    acts = [
        act("devices", "re-enrol", "a"),
        act("renewals", "order", "--all", "--yes")["order"],
        *(act("devices", verb, "a") for verb in ("suspend", "reinstate", "retire", "revoke")),
    ]
    assert {each["actor"] for each in acts} == {f"olga@{socket.gethostname()}"[:64]}


def test_devices_by_the_end_of_their_certificate(fleet: tuple[Place, list[Camera]]) -> None:
    """Page by page, as printed and as JSON."""
    place, _ = fleet
    expiring = ("devices", "list", "--expiring-within")
    assert "No certificate of a device ends within 30d" in place.sma(*expiring, "30d").stdout
    page = place.sma(*expiring, "120w", "--limit", "2")
    assert re.search(r"^a +Test +active +\d{4}-\d\d-\d\d \d\d:\d\d +729 d$", page.stdout, re.M)
    after = re.findall(r"--after '(.+)'", page.stdout)[0]
    rest = json.loads(place.sma(*expiring, "120w", "--after", after, "--json").stdout)
    assert [each["device_serial"] for each in rest["devices"]] == ["c c"]
    assert rest["next_cursor"] is None
    first = json.loads(place.sma(*expiring, "120w", "--limit", "2", "--json").stdout)
    assert first["next_cursor"] == after
    for wrong in ("c c", "2028-01-01T00:00:00Z", "2028-01-01T00:00:00 a", "-Z"):
        refused = place.sma(*expiring, "120w", "--after", wrong)
        assert refused.returncode == 2, wrong
        assert "camera-7" in refused.stderr
    refused = place.sma(*expiring, "soon")
    assert refused.returncode == 2


# --- tables


def test_tables_are_never_populated_over(place: Place) -> None:
    """Threat 12: populating again keeps every table, and a lost one is never made anew in use."""
    assert json.loads(place.sma("tables", "show", "--json").stdout) == {
        "tables": 2_500,
        "keys_per_table": 1_000,
        "present": 2_500,
        "wrapped_under": "passphrase",
    }
    file = place.data_dir / "sma.db"
    with closing(sqlite3.connect(file)) as database:
        before = database.execute("SELECT * FROM key_tables ORDER BY table_id").fetchall()
        assert json.loads(place.sma("tables", "populate", "--json").stdout) == {"created": 0}
        assert database.execute("SELECT * FROM key_tables ORDER BY table_id").fetchall() == before

        # Before any device is registered, a missing table is made.
        database.execute("DELETE FROM key_tables WHERE table_id = 7")
        database.commit()
        assert "sma tables populate" in place.sma("tables", "show").stdout
        assert_refused(
            place.sma("serve", "--port", "0", settings={"DATABASE_URL": f"sqlite:///{file}"}),
            4,
            "2,499 of 2,500",
            "sma tables populate",
        )
        assert json.loads(place.sma("tables", "populate", "--json").stdout) == {"created": 1}
        assert place.sma("provision", "x").returncode == 0
        database.execute("DELETE FROM key_tables WHERE table_id = 7")
        database.commit()
        assert_refused(place.sma("tables", "populate"), 4, "backup")
        assert_refused(place.sma("init"), 4, "backup")
        remaining = database.execute("SELECT count(*) FROM key_tables").fetchone()
        assert remaining == (2_499,)


# --- ca


def test_the_ca_is_shown(founded_place: Place) -> None:
    shown = json.loads(founded_place.sma("ca", "show", "--json").stdout)
    assert list(shown) == ["root", "intermediate"]
    assert shown["intermediate"]["issuer"] == shown["root"]["subject"]
    text = founded_place.sma("ca", "show").stdout
    assert "Simulated Mfg Root CA" in text


def test_the_ca_is_exported_in_the_files_of_the_contract(place: Place, tmp_path: Path) -> None:
    """Threats 5 and 29: the keys stay encrypted, all files are private, none is overwritten."""
    certificates = {"simulated-mfg-root-ca.crt", "simulated-mfg-intermediate-ca.crt"}
    keys = {"simulated-mfg-root-ca.key", "simulated-mfg-intermediate-ca.key"}
    output = tmp_path / "ca"
    exported = place.sma("ca", "export", "--output-dir", str(output), "--json")
    assert {Path(f).name for f in json.loads(exported.stdout)["files"]} == certificates | keys
    assert {file.name for file in output.iterdir()} == certificates | keys
    for name in keys:
        assert "BEGIN ENCRYPTED PRIVATE KEY" in (output / name).read_text()
        assert (output / name).stat().st_mode & 0o077 == 0
        loaded = subprocess.run(
            [
                "openssl",
                "pkey",
                "-in",
                str(output / name),
                "-noout",
                "-passin",
                f"file:{place.data_dir / 'ca-password'}",
            ],
            capture_output=True,
            check=False,
        )
        assert loaded.returncode == 0, loaded.stderr
    root, intermediate = (
        x509.load_pem_x509_certificate((output / name).read_bytes())
        for name in sorted(certificates, reverse=True)
    )
    intermediate.verify_directly_issued_by(root)
    assert_refused(place.sma("ca", "export", "--output-dir", str(output)), 3, "never overwritten")

    (place.data_dir / "simulated-mfg-root-ca.key").unlink()
    without = place.sma("ca", "export", "--output-dir", str(tmp_path / "2"))
    assert "in its safe place" in without.stdout
    only = place.sma("ca", "export", "--output-dir", str(tmp_path / "3"), "--certificates-only")
    assert only.returncode == 0
    assert {file.name for file in (tmp_path / "3").iterdir()} == certificates


# --- version, demo


def test_version(empty: Place) -> None:
    assert json.loads(empty.sma("version", "--json").stdout) == {
        "version": __version__,
        "python": platform.python_version(),
    }
    assert empty.sma("version").stdout.startswith(f"birthmark-sma {__version__}")


def test_the_demo_tells_the_whole_story(empty: Place, tmp_path: Path) -> None:
    """Every answer is the expected one, and nothing is left behind."""
    picture = tmp_path / "my picture.jpg"
    picture.write_bytes(b"any bytes are a picture here")
    told = empty.sma("demo", str(picture))
    assert told.returncode == 0, told.stdout + told.stderr
    lines = [line.split() for line in told.stdout.splitlines()]
    checks = [line for line in lines if line[:1] == ["\N{CHECK MARK}"]]
    assert [line[-1] for line in checks[:3]] == ["demo-camera-0001", "PASS", "FAIL"]
    assert len(checks) == 8
    assert "\N{BALLOT X}" not in told.stdout
    assert "my picture.jpg" in told.stdout
    assert "400 FAIL: Unknown table ID" in told.stdout
    assert "2 PASS, 4 FAIL" in told.stdout
    assert "Every response was the expected one." in told.stdout
    assert not empty.data_dir.exists()


# --- what all have in common


def commands(command: Any = None, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every command and group, as it is typed."""
    command = command or typer.main.get_command(app)
    yield path
    for name, each in getattr(command, "commands", {}).items():
        yield from commands(each, (*path, name))


def command_at(path: tuple[str, ...]) -> Any:
    """A command by the words that are typed."""
    found: Any = typer.main.get_command(app)
    for name in path:
        found = found.commands[name]
    return found


@pytest.mark.parametrize("path", sorted(commands()), ids=" ".join)
def test_help_mentions_every_option(path: tuple[str, ...]) -> None:
    """And every argument and subcommand, each with a word of explanation."""
    told = sma(*path, "--help", environ=server_environ(Path("nowhere")))
    assert told.returncode == 0, told.stderr
    assert told.stderr == ""
    command = command_at(path)
    for parameter in command.params:
        for name in parameter.opts:
            assert name in told.stdout, f"{name} is not in the help of {' '.join(path)}"
        assert parameter.help, f"{parameter.name} has no help"
    for name, each in getattr(command, "commands", {}).items():
        assert name in told.stdout
        assert each.get_short_help_str(), name


def test_help_comes_at_once() -> None:
    """A whole process of `sma --help` takes less than 0.4 seconds in the middle of five runs.

    Of a processor, as it waits for nothing: what else the machine does meanwhile does not count.
    """
    times = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(
            [sys.executable, "-m", "birthmark_sma", "--help"], capture_output=True, check=True
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)
    assert statistics.median(times) < HELP_SECONDS, times


@pytest.mark.parametrize(
    "command",
    [
        ("devices", "list"),
        ("devices", "show", "x"),
        ("devices", "suspend", "x"),
        ("devices", "reinstate", "x"),
        ("devices", "revoke", "x"),
        ("devices", "flagged"),
        ("devices", "flagged", "--check"),
        ("devices", "reviewed", "x"),
        ("devices", "re-enrol", "x"),
        ("devices", "list", "--expiring-within", "30d"),
        ("tables", "populate"),
        ("tables", "show"),
        ("ca", "show"),
        ("ca", "export", "--output-dir", "exported"),
        ("migrate",),
        ("validate", "-"),
    ],
    ids=" ".join,
)
def test_without_an_authority_each_command_says_so(empty: Place, command: tuple[str, ...]) -> None:
    """One line on stderr, and no file is made by asking."""
    assert_refused(empty.sma(*command, stdin="{}"), 4, "sma init")
    assert not empty.data_dir.exists()
    assert list(empty.data_dir.parent.iterdir()) == []


@pytest.mark.parametrize("command", [("devices", "list"), ("ca", "show"), ("serve", "--port", "0")])
def test_a_database_that_is_away_is_told_in_one_line(
    empty: Place, command: tuple[str, ...]
) -> None:
    """Threat 28: neither the password in the URL nor the library's words are repeated."""
    url = "postgresql://someone:hidden-password@127.0.0.1:1/none"
    refused = empty.sma(*command, settings={"DATABASE_URL": url, "CA_PASSWORD": "another-secret"})
    assert_refused(refused, 4, "does not answer")
    for secret in ("hidden-password", "another-secret", "psycopg", "someone"):
        assert secret not in refused.stderr


@pytest.mark.parametrize(
    "command", [("nonsense",), ("serve", "--nonsense"), ("devices", "show"), ("serve", "extra")]
)
def test_wrong_usage_is_2(empty: Place, command: tuple[str, ...]) -> None:
    refused = empty.sma(*command)
    assert refused.returncode == 2
    assert "Usage: " in refused.stderr
    assert "Traceback" not in refused.stderr
    usage, error = refused.stderr.splitlines()
    assert usage.startswith("Usage: sma ")
    assert re.fullmatch(r"sma: .+\. For help, type: sma.* --help\.", error)


def test_a_group_without_a_command_prints_its_help(empty: Place) -> None:
    refused = empty.sma("devices")
    assert refused.returncode == 2
    assert refused.stdout == ""
    assert refused.stderr == empty.sma("devices", "-h").stdout


@pytest.mark.parametrize("command", [(), ("serve",), ("devices",), ("devices", "list")])
def test_every_command_takes_h(empty: Place, command: tuple[str, ...]) -> None:
    short = empty.sma(*command, "-h")
    assert short.returncode == 0, short.stderr
    assert short.stdout == empty.sma(*command, "--help").stdout
    assert "-h, --help" in short.stdout


@pytest.mark.parametrize("group", [(), ("devices",), ("simulate",), ("secrets",), ("history",)])
def test_the_help_of_a_group_cuts_no_sentence(empty: Place, group: tuple[str, ...]) -> None:
    told = empty.sma(*group, "--help").stdout
    commands = told.partition("Commands:")[2].partition("Settings come")[0]
    assert len(commands.splitlines()) > 2
    assert "..." not in commands


def test_the_version_is_an_option_too(empty: Place) -> None:
    asked = empty.sma("--version")
    assert asked.returncode == 0, asked.stderr
    assert asked.stdout == empty.sma("version").stdout


@pytest.mark.parametrize("family", ["", "x" * 51, "a\nb", "\x1b[31mred"])
def test_a_family_has_the_limits_of_the_api(
    founded_place: Place, tmp_path: Path, family: str
) -> None:
    """What the API refuses, the command line refuses as well, and registers nothing."""
    output = str(tmp_path / "device")
    refused = founded_place.sma("provision", "odd", "--family", family, "--output-dir", output)
    assert refused.returncode == 6
    assert refused.stderr.startswith("sma: device_family has 1 to 50 printable characters")
    assert founded_place.sma("devices", "show", "odd").returncode == 5


def test_every_setting_that_serve_reads_is_a_flag(founded_place: Place) -> None:
    """A flag of the same name for each setting but the secret ones, of which one has a flag.

    Those of a server to work on have theirs before the command.
    """
    told = founded_place.sma("serve", "--help").stdout
    without = (SECRET_FIELDS - {"database_url"}) | {*SERVER_FLAGS}
    wanted = {f"--{name.replace('_', '-')}" for name in {*Settings.model_fields} - without}
    assert wanted <= set(re.findall(r"--[a-z-]+", told))


def test_an_argument_that_is_no_text_is_one_sentence(founded_place: Place) -> None:
    """Bytes that are not UTF-8 end in no traceback."""
    refused = founded_place.sma("devices", "show", "\udcff")
    assert refused.returncode in {2, 5}
    assert "Traceback" not in refused.stderr
