"""`sma ca list`, `rotate`, `compromised` and `roll-root`, also killed at any moment."""

import json
import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.integration.cli.conftest import Place, assert_refused
from tests.support.programs.commands import Background
from tests.support.programs.kill_points import (
    count_steps,
    die_before_statement,
    die_before_step,
)
from tests.support.programs.server import server_environ


def listed(place: Place) -> dict[str, dict[str, Any]]:
    """Return the CAs as `sma ca list --json` has them, by name."""
    ran = place.sma("ca", "list", "--json")
    assert ran.returncode == 0, ran.stderr
    return {each["name"]: each for each in json.loads(ran.stdout)["issuers"]}


def states(place: Place) -> dict[str, str]:
    """Return the states of the CAs, by name."""
    return {name: each["state"] for name, each in listed(place).items()}


def ca(place: Place, *arguments: str) -> dict[str, Any]:
    """Run a command of `sma ca` with --yes and --json, and return its output."""
    ran = place.sma("ca", *arguments, "--yes", "--json")
    assert ran.returncode == 0, ran.stderr
    answer: dict[str, Any] = json.loads(ran.stdout)
    return answer


def test_the_life_of_intermediates(place: Place) -> None:
    """Each command says what comes next; the list and the doctor show what is."""
    rotated = place.sma("ca", "rotate", "--yes")
    assert "intermediate-2 signs new device certificates" in rotated.stdout
    assert "Next: sma backup" in rotated.stdout
    prepared = ca(place, "rotate", "--prepare-only")
    assert (prepared["active"], prepared["added"]) == ("intermediate-2", ["intermediate-3"])
    assert_refused(place.sma("ca", "rotate", "--yes"), 5, "--activate intermediate-3")
    assert ca(place, "rotate", "--activate", "intermediate-3")["active"] == "intermediate-3"
    assert ca(place, "compromised", "intermediate-3", "--since", "2026-01-02T03:04Z") == {
        "active": "intermediate-4",
        "added": ["intermediate-4"],
        "retiring": [],
        "compromised": "intermediate-3",
        "root_key_file": None,
        "dry_run": False,
        "devices": 0,
    }
    assert states(place) == {
        "root": "active",
        "intermediate": "retiring",
        "intermediate-2": "retiring",
        "intermediate-3": "compromised",
        "intermediate-4": "active",
    }
    table = place.sma("ca", "list").stdout
    assert "Simulated Mfg Intermediate CA 4" in table
    doctor = place.sma("doctor", "--json")
    assert "intermediate-2 is retiring" in doctor.stdout
    shown = json.loads(place.sma("ca", "show", "--json").stdout)
    assert shown["intermediate"]["subject"].startswith("CN=Simulated Mfg Intermediate CA 4,")


def test_nothing_is_done_without_an_answer(place: Place) -> None:
    """Where nobody can be asked, --yes is needed. A dry run needs it not."""
    for act in (["rotate"], ["roll-root"], ["compromised", "intermediate"]):
        assert place.sma("ca", *act).returncode == 2
        dry = place.sma("ca", *act, "--dry-run")
        assert dry.returncode == 0, dry.stderr
        assert "Nothing was changed" in dry.stdout
    assert states(place) == {"root": "active", "intermediate": "active"}


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["rotate", "--activate", "x", "--prepare-only"], 2),
        (["rotate", "--activate", "x"], 5),
        (["rotate", "--key-type", "dsa"], 2),
        (["compromised", "nothing"], 5),
        (["compromised", "root"], 5),
        (["compromised", "intermediate", "--since", "yesterday"], 2),
        (["compromised", "intermediate", "--since", "2999-01-01"], 5),
        (["compromised", "intermediate", "--since", "1969-12-31"], 5),
        (["compromised", "intermediate", "--since", "0001-01-01T00:00+14:00"], 2),
    ],
)
def test_what_is_refused(place: Place, arguments: list[str], code: int) -> None:
    """With a sentence, and with nothing changed."""
    ran = place.sma("ca", *arguments, "--yes")
    assert ran.returncode == code, ran.stderr
    assert states(place) == {"root": "active", "intermediate": "active"}


def test_the_root_s_key_from_its_safe_place(place: Place, tmp_path: Path) -> None:
    """Without it, the command says which key is missing; with it, any file name will do."""
    key = place.data_dir / "simulated-mfg-root-ca.key"
    safe = tmp_path / "safe.key"
    key.rename(safe)
    assert_refused(place.sma("ca", "rotate", "--yes"), 3, "private key of root", "--root-key-file")
    assert ca(place, "rotate", "--root-key-file", str(safe))["active"] == "intermediate-2"
    safe.chmod(0o644)
    assert place.sma("ca", "rotate", "--root-key-file", str(safe), "--yes").returncode == 3


def test_a_new_root_and_what_depends_on_its_key(place: Place, tmp_path: Path) -> None:
    """Its file, exports, lists, a backup with both keys, and the restored authority."""
    rolled = ca(place, "roll-root")
    assert rolled["root_key_file"] == str(place.data_dir / "simulated-mfg-root-ca-2.key")
    assert set(states(place)) == {
        *("root", "root-2", "cross-1", "cross-2"),
        *("intermediate", "intermediate-2"),
    }
    exported = tmp_path / "exported"
    assert place.sma("ca", "export", "--output-dir", str(exported)).returncode == 0
    assert {each.name for each in exported.glob("*root*")} == {
        f"simulated-mfg-root-ca{number}.{kind}" for number in ("", "-2") for kind in ("crt", "key")
    }
    lists = tmp_path / "lists"
    assert place.sma("ca", "publish-crl", "--output-dir", str(lists)).returncode == 0
    assert len(list(lists.iterdir())) == 4
    assert place.sma("provision", "camera", "--output-dir", str(tmp_path / "pi")).returncode == 0
    backup = tmp_path / "backup"
    made = place.sma("backup", str(backup), "--with-secrets")
    assert made.returncode == 0, made.stderr
    restored = Place(tmp_path / "restored")
    ran = restored.sma("restore", str(backup))
    assert ran.returncode == 0, ran.stderr
    assert states(restored) == states(place)
    for key in ("simulated-mfg-root-ca.key", "simulated-mfg-root-ca-2.key"):
        assert (restored.data_dir / key).read_bytes() == (place.data_dir / key).read_bytes()
    assert ca(restored, "rotate")["active"] == "intermediate-3"


# --- killed


def run(place: Place, *arguments: str, before: Any) -> int | None:
    """Run a command that a function prepares, perhaps for its end."""
    ran = Background(*arguments, environ=server_environ(place.data_dir), before=[before])
    ran.communicate()
    return ran.returncode


def assert_before_or_after(place: Place, before: set[str], after: set[str]) -> bool:
    """The CAs are those before the act or those after it; return whether they are those after.

    Each root has its key, and the next act works.
    """
    names = set(states(place))
    assert names in (before, after)
    return names == after


def test_a_rotation_that_was_killed(place: Place) -> None:
    """Before or after, at each of its statements; the next rotation then works."""
    number = 1
    codes = set()
    while True:
        before = set(states(place))
        after = before | {f"intermediate-{sum('inter' in each for each in before) + 1}"}
        code = run(place, "ca", "rotate", "--yes", before=partial(die_before_statement, number))
        assert_before_or_after(place, before, after)
        assert list(states(place).values()).count("active") == 2
        codes.add(code)
        if code == 0:
            break
        number += 3
    assert codes == {0, -signal.SIGKILL}
    assert number > 20


def test_a_new_root_that_was_killed(place: Place, tmp_path: Path) -> None:
    """Threats 8 and 29: no root without its key, and no key without a root is left."""
    marks = tmp_path / "marks"
    folder = place.data_dir
    assert run(place, "ca", "roll-root", "--yes", before=partial(count_steps, folder, marks)) == 0
    steps = marks.stat().st_size
    roots = 2
    points = [partial(die_before_step, folder, steps - each) for each in range(0, 16, 2)]
    points += [partial(die_before_statement, each) for each in range(20, 60, 8)]
    for point in points:
        assert run(place, "ca", "roll-root", "--yes", before=point) in {0, -signal.SIGKILL}
        names = [name for name, each in listed(place).items() if each["role"] == "root"]
        assert len(names) in {roots, roots + 1}
        roots = len(names)
        # The next act completes what the killed one left behind, and finds the active root's key.
        assert ca(place, "rotate")["added"]
        # A file that was being written is of a key that no root has: it is left, encrypted.
        keys = {each.name for each in folder.glob("simulated-*.key*")}
        assert keys == {f"simulated-mfg-root-ca{name.removeprefix('root')}.key" for name in names}
    assert roots > 3
