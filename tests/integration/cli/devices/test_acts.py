"""`sma devices suspend`, `reinstate`, `revoke` and `retire`: who is meant, and what is asked."""

import json
import os
import pty
import sqlite3
import subprocess
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import pytest

from birthmark_sma.authority.devices import store as device_store
from birthmark_sma.storage.engine import open_database
from tests.integration.cli.conftest import Place, assert_refused
from tests.support.devices.registered import device
from tests.support.programs.server import server_environ

Ended = subprocess.CompletedProcess[str]
SERIALS = [f"device-{number:04}" for number in range(1, 21)]
UNCHANGED = dict.fromkeys(SERIALS, "active")


@pytest.fixture
def fleet(place: Place) -> Place:
    """An authority with 20 devices of one family."""
    database = open_database(f"sqlite:///{place.data_dir / 'sma.db'}")
    with database.write() as transaction:
        device_store.add_devices(transaction, [device(number) for number in range(1, 21)])
    database.close()
    return place


def statuses(place: Place) -> dict[str, str]:
    """Return the status of each device."""
    with closing(sqlite3.connect(place.data_dir / "sma.db")) as file:
        return dict(file.execute("SELECT device_serial, status FROM registered_devices"))


def at_terminal(place: Place, answer: str, *arguments: str) -> tuple[int, str]:
    """Run a command on a terminal, type an answer; return the exit code and what was printed."""
    controller, terminal = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "birthmark_sma", "devices", *arguments],
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        env=os.environ | server_environ(place.data_dir),
        cwd=place.data_dir.parent,
    ) as command:
        os.close(terminal)
        os.write(controller, f"{answer}\n".encode())
        shown = b""
        try:
            while some := os.read(controller, 4096):
                shown += some
        except OSError:  # the last process that had the terminal has ended
            pass
        code = command.wait(30)
    os.close(controller)
    return code, shown.decode()


def act(place: Place, *arguments: str, stdin: str | None = None) -> "Ended":
    """Run `sma devices` with these arguments, without a terminal."""
    return place.sma("devices", *arguments, stdin=stdin)


# --- whom it means


def test_several_serials(fleet: Place) -> None:
    """The second time nothing changes, and that is no error."""
    done = act(fleet, "suspend", *SERIALS[:3])
    assert done.stdout == "3 devices are suspended.\n"
    again = act(fleet, "suspend", *SERIALS[:4])
    assert again.stdout == (
        f"{SERIALS[3]} is suspended. 3 were suspended before."
        f" To undo: sma devices reinstate '{SERIALS[3]}'\n"
    )
    assert act(fleet, "suspend", SERIALS[0]).stdout == "Nothing changed. 1 was suspended before.\n"
    assert act(fleet, "reinstate", *SERIALS[:4]).stdout == "4 devices are active.\n"
    assert statuses(fleet) == UNCHANGED


def test_a_file_of_serials(fleet: Place, tmp_path: Path) -> None:
    """Blank lines, comments, the line ends and the byte order mark of other systems."""
    file = tmp_path / "lost"
    file.write_bytes(b"\xef\xbb\xbf# lost in May\r\n\r\n device-0001 \r\nDEVICE-0002\ndevice-0003")
    done = act(fleet, "revoke", "device-0004", "--file", str(file), "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["changed"] == SERIALS[:4]
    assert (told["act"], told["done"], told["reason"]) == ("revoke", True, "unspecified")
    assert "@" in told["actor"]
    assert told["counts"] == [{"device_family": "Test", "status": "active", "devices": 4}]


def test_serials_on_standard_input(fleet: Place) -> None:
    """They need --yes: standard input cannot be the file and the person at once."""
    assert_asked(act(fleet, "retire", "--file", "-", stdin="device-0001\n"))
    done = act(fleet, "retire", "--file", "-", "--yes", stdin="device-0001\n")
    assert done.stdout == "device-0001 is retired.\n"


BAD_LINES: dict[str, tuple[bytes, str]] = {
    "not UTF-8": (b"device-0001\nM\xfcller\n", "Line 2 of"),
    "control characters": (b"device-0001\ndevice\x00-0002\n", "Line 2 of"),
    "too long": (b"device-0001\n" + b"x" * 65 + b"\n", "Line 2 of"),
    "huge": (b"x" * 5_000_000 + b"\ndevice-0001\n", "Line 1 of"),
    "many": (b"\x07\n" * 8, "Lines 1, 2, 3, 4, 5 and 3 more of"),
}


@pytest.mark.parametrize(("content", "words"), BAD_LINES.values(), ids=BAD_LINES)
def test_lines_that_are_no_serials(
    fleet: Place, tmp_path: Path, content: bytes, words: str
) -> None:
    """Their numbers are told, and nothing changes."""
    file = tmp_path / "list"
    file.write_bytes(content)
    assert_refused(act(fleet, "revoke", "--file", str(file)), 6, words, "Nothing changed")
    assert statuses(fleet) == UNCHANGED


def test_a_file_that_is_not_there(fleet: Place) -> None:
    assert_refused(act(fleet, "revoke", "--file", "nowhere"), 3, "nowhere")


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("--yes",),
        ("device-0001", "--family", "Test"),
        ("--file", "-", "--table", "1", "--yes"),
    ],
    ids=" ".join,
)
def test_names_or_filters(fleet: Place, arguments: Sequence[str]) -> None:
    """One of the two. Without either it is not all devices."""
    refused = act(fleet, "revoke", *arguments, stdin="device-0002\n")
    assert refused.returncode == 2
    assert "either serials" in refused.stderr
    assert statuses(fleet) == UNCHANGED


def test_filters(fleet: Place) -> None:
    """Each by its option. A filter that nothing meets is told and is no error."""
    options = ("--family", "Test", "--provisioned-after", "2026-01-01", "--table", "3")
    done = act(fleet, "suspend", *options, "--yes", "--json")
    assert json.loads(done.stdout)["changed"] == ["device-0003"]
    none = act(fleet, "suspend", "--app-version", "9", "--yes")
    assert (none.returncode, none.stdout) == (
        0,
        "Nothing changed: no device meets these criteria.\n",
    )
    before = act(fleet, "suspend", "--provisioned-before", "2026-01-01T00:00:00Z", "--yes")
    assert "no device meets" in before.stdout
    assert act(fleet, "revoke", "--provisioned-after", "May", "--yes").returncode == 2
    assert act(fleet, "revoke", "--table", str(1 << 64), "--yes").returncode == 2


def test_an_unknown_serial_prevents_all(fleet: Place) -> None:
    """The lists tell which, for a script as well."""
    refused = act(fleet, "revoke", *SERIALS[:2], "nobody", "--json")
    assert refused.returncode == 5
    assert refused.stderr == "sma: No device nobody is registered. Nothing changed.\n"
    told = json.loads(refused.stdout)
    assert (told["done"], told["unknown"]) == (False, ["nobody"])
    assert statuses(fleet) == UNCHANGED


def test_who_cannot_change_prevents_all(fleet: Place) -> None:
    """And a filter leaves them out."""
    act(fleet, "revoke", SERIALS[0])
    refused = act(fleet, "retire", *SERIALS[:2])
    assert (refused.returncode, refused.stdout) == (5, "")
    assert f"{SERIALS[0]} is revoked, so it cannot become retired" in refused.stderr
    done = act(fleet, "retire", "--family", "Test", "--yes")
    assert done.stdout == "19 devices are retired. 1 cannot change: revoked.\n"


# --- what it asks, and shows before


def assert_asked(result: Ended) -> None:
    """Nobody could be asked, so nothing was done."""
    assert result.returncode == 2
    assert "--yes" in result.stderr
    assert "--dry-run" in result.stderr


def test_a_filter_needs_consent(fleet: Place) -> None:
    """A script gives it with --yes, a person at a terminal by an answer."""
    assert_asked(act(fleet, "suspend", "--family", "Test"))
    assert statuses(fleet) == UNCHANGED
    code, shown = at_terminal(fleet, "n", "suspend", "--family", "Test")
    assert (code, "This suspends 20 devices (Test: 20). Suspend?" in shown) == (1, True), shown
    assert statuses(fleet) == UNCHANGED
    code, shown = at_terminal(fleet, "y", "suspend", "--family", "Test")
    assert (code, "20 devices are suspended." in shown) == (0, True), shown
    assert set(statuses(fleet).values()) == {"suspended"}


def test_what_cannot_be_undone_is_asked_at_a_terminal(fleet: Place) -> None:
    """Also for one device. Suspending one device asks nothing."""
    for verb in ("revoke", "retire"):
        code, shown = at_terminal(fleet, "n", verb, SERIALS[0])
        assert (code, "1 device (Test: 1), and cannot be undone" in shown) == (1, True), shown
    assert statuses(fleet) == UNCHANGED
    code, shown = at_terminal(fleet, "n", "suspend", SERIALS[0])
    assert (code, "[y/N]" in shown) == (0, False), shown
    code, shown = at_terminal(fleet, "n", "reinstate", *SERIALS[:2])
    assert (code, "Reinstate?" in shown) == (1, True), shown
    code, shown = at_terminal(fleet, "n", "revoke", "--yes", SERIALS[0])
    assert (code, "[y/N]" in shown) == (0, False), shown


def test_a_dry_run(fleet: Place) -> None:
    """Counts by family and status, and the first serials. It needs no consent."""
    act(fleet, "suspend", SERIALS[0])
    shown = act(fleet, "revoke", "--family", "Test", "--dry-run")
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.splitlines() == [
        "FAMILY  STATUS     DEVICES",
        "Test    active          19",
        "Test    suspended        1",
        "",
        f"{', '.join(SERIALS[:10])} and 10 more",
        "20 devices would become revoked.",
    ]
    told = json.loads(act(fleet, "revoke", "--family", "Test", "--dry-run", "--json").stdout)
    assert (told["done"], told["changed"]) == (False, SERIALS)
    assert statuses(fleet) == UNCHANGED | {SERIALS[0]: "suspended"}


@pytest.mark.parametrize("how", [(), ("--yes",), ("--dry-run",)])
def test_an_act_that_is_prevented_promises_nothing(fleet: Place, how: tuple[str, ...]) -> None:
    """It prints its error, and no number of devices beside it."""
    act(fleet, "revoke", SERIALS[0])
    for verb, serials in [("revoke", ["nobody"]), ("suspend", SERIALS[:2])]:
        refused = act(fleet, verb, *serials, *how)
        assert (refused.returncode, refused.stdout) == (5, "")
        assert refused.stderr.endswith("Nothing changed.\n")


# --- reasons


def test_compromised_since(fleet: Place) -> None:
    """A time of the past, with the one reason that has it; later it can be corrected."""
    reason = ("--reason", "key_compromise")
    since = ("--compromised-since", "2026-01-02T03:04:05+01:00")
    act(fleet, "revoke", SERIALS[0], *reason)
    done = act(fleet, "revoke", *SERIALS[:2], *reason, *since, "--json")
    told = json.loads(done.stdout)
    assert (told["changed"], told["compromised_since"]) == (SERIALS[:2], "2026-01-02T02:04:05Z")
    again = json.loads(act(fleet, "revoke", *SERIALS[:2], *reason, *since, "--json").stdout)
    assert (again["changed"], again["unchanged"]) == ([], SERIALS[:2])
    assert_refused(act(fleet, "revoke", SERIALS[2], *since), 5, "key_compromise")
    future = ("--compromised-since", "2999-01-01")
    assert_refused(act(fleet, "revoke", SERIALS[2], *reason, *future), 5, "future")
    assert act(fleet, "revoke", SERIALS[2], *reason, "--compromised-since", "x").returncode == 2
    assert statuses(fleet)[SERIALS[2]] == "active"


def test_who_did_it_is_shown(fleet: Place) -> None:
    """Reason, time and actor, for people and for scripts."""
    act(fleet, "retire", SERIALS[0])
    with closing(sqlite3.connect(fleet.data_dir / "sma.db")) as file:
        [row] = file.execute(
            "SELECT status_reason, status_actor FROM registered_devices WHERE device_serial = ?",
            [SERIALS[0]],
        )
    listed = json.loads(act(fleet, "list", "--limit", "1", "--json").stdout)["devices"][0]
    assert (listed["status"], listed["status_reason"], listed["status_actor"]) == ("retired", *row)
    assert listed["status_changed_at"].endswith("Z")
    assert row[0] == "cessation_of_operation"
