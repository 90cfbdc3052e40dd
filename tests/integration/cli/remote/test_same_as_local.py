"""Each command on a server prints and ends as on the database, and the trail tells them apart."""

import json
import re
from collections.abc import Sequence

import pytest

from tests.integration.cli.remote.conftest import REQUEST_ID, Ended, Remote, populate

READS: Sequence[tuple[str, ...]] = (
    ("devices", "list"),
    ("devices", "list", "--limit", "2"),
    ("devices", "list", "--limit", "2", "--after", "base-2"),
    ("devices", "list", "--after", "zzz"),
    ("devices", "list", "--expiring-within", "3650d"),
    ("devices", "list", "--expiring-within", "3650d", "--limit", "1"),
    ("devices", "list", "--expiring-within", "1d"),
    ("devices", "show", "BASE-1"),
    ("devices", "show", "nobody"),
    ("devices", "show", "a/b"),
    ("devices", "show", ".."),
    ("devices", "show", ""),
    ("devices", "show", "x" * 200),
    ("devices", "flagged"),
    ("devices", "flagged", "--all", "--shadow"),
    ("devices", "suspend", "base-1", "nobody", "--dry-run"),
    ("devices", "suspend", "base-1", "base-2", "--dry-run"),
    ("devices", "reinstate", "base-1", "--dry-run"),
    ("devices", "revoke", "--family", "Pi", "--dry-run"),
    ("devices", "revoke", "--family", "Other", "--dry-run"),
    ("devices", "revoke", "--provisioned-after", "2020-01-01", "--table", "1", "--dry-run"),
    ("devices", "suspend", "nobody"),
    ("devices", "suspend", "--family", "Pi"),
    ("devices", "suspend"),
    ("devices", "suspend", ""),
    ("devices", "suspend", "x" * 65, "base-1", "nobody", "a\tb"),
    ("devices", "revoke", "base-1", "--reason", "unknown"),
    ("devices", "revoke", "base-1", "--compromised-since", "2026-01-01"),
    ("devices", "re-enrol", "nobody"),
    ("devices", "re-enrol", "", "--cancel"),
    ("devices", "re-enrol", "base-1", "--for", "10s", "--cancel"),
    ("devices", "reviewed", "base-1"),
    ("devices", "reviewed", "nobody"),
    ("devices", "reviewed", ""),
    ("devices", "list", "--after", ""),
    ("keys", "list", "--all"),
    ("keys", "revoke", "nobody"),
    ("keys", "rotate", "nobody"),
    ("keys", "rotate", ""),
    ("keys", "create", " x", "--scope", "read"),
    ("keys", "create", "a validate", "--scope", "validate"),
    ("keys", "create", "x", "--scope", "validate", "--uses", "3"),
    ("keys", "create", "x", "--scope", "validate", "--rate", "many"),
    ("keys", "create", "x", "--scope", "boss"),
    ("validations", "list"),
    ("validations", "list", "--limit", "1"),
    ("validations", "list", "--result", "PASS"),
    ("validations", "list", "--request-id", REQUEST_ID, "--since", "1d"),
    ("validations", "list", "--device", "BASE-1", "--table", "1"),
    ("validations", "list", "--token-digest", "ab" * 16),
    ("validations", "show", REQUEST_ID),
    ("validations", "show", "nothing"),
    ("tables", "list", "--limit", "3"),
    ("tables", "list", "--limit", "3", "--after", "4"),
    ("tables", "list", "--open"),
    ("ca", "list"),
    ("acts", "list"),
    ("acts", "list", "--limit", "2"),
    ("acts", "list", "--limit", "2", "--before", "5"),
    ("acts", "list", "--act", "device.suspend", "--since", "2020-01-01"),
    ("acts", "list", "--act", "nonsense"),
    ("acts", "show", "1"),
    ("acts", "show", "2"),
    ("acts", "show", "99999"),
)
WITHOUT_JSON = (("acts", "export"), ("acts", "export", "--act", "device.suspend"))


def _told(ended: Ended) -> tuple[int, str, str]:
    # The last use of the key that the server sees is a use by this test.
    shown = re.sub(r'"last_used_at": ("[^"]*"|null)', '"last_used_at": 0', ended.stdout)
    shown = re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d$|never$", "-", shown, flags=re.MULTILINE)
    shown = re.sub(r'"actor": "[^"]*",\n  "changed"', '"changed"', shown)
    return ended.returncode, shown, ended.stderr


@pytest.mark.parametrize("arguments", READS, ids=" ".join)
def test_it_prints_the_same(remote: Remote, arguments: tuple[str, ...]) -> None:
    assert _told(remote.on_server(*arguments)) == _told(remote.on_database(*arguments))
    if arguments[:2] == ("devices", "reviewed"):
        return
    with_json = (*arguments, "--json")
    assert _told(remote.on_server(*with_json)) == _told(remote.on_database(*with_json))


@pytest.mark.parametrize("arguments", WITHOUT_JSON, ids=" ".join)
def test_an_export_is_the_same(remote: Remote, arguments: tuple[str, ...]) -> None:
    assert _told(remote.on_server(*arguments)) == _told(remote.on_database(*arguments))


ACTS: Sequence[tuple[str, ...]] = (
    ("devices", "suspend", "{}-1"),
    ("devices", "suspend", "{}-1"),
    ("devices", "suspend", "{}-1", "{}-2"),
    ("devices", "re-enrol", "{}-1"),
    ("devices", "revoke", "{}-1", "{}-2", "--reason", "superseded"),
    ("devices", "reinstate", "{}-1", "{}-3"),
    ("devices", "re-enrol", "{}-3", "--for", "12h"),
    ("devices", "re-enrol", "{}-3", "--cancel"),
    ("devices", "re-enrol", "{}-3", "--cancel"),
    (
        *("devices", "revoke", "{}-3", "--reason", "key_compromise"),
        *("--compromised-since", "2026-01-01"),
    ),
    ("devices", "retire", "{}-3"),
    ("keys", "create", "{} key", "--scope", "provision", "--uses", "3", "--family", "Pi"),
    ("keys", "create", "{} key", "--scope", "provision"),
    ("keys", "rotate", "{} key", "--grace", "0"),
    ("keys", "rotate", "{} key"),
    ("keys", "revoke", "{} key"),
)


@pytest.mark.parametrize("as_json", [False, True], ids=["text", "json"])
def test_acts_print_the_same(each_remote: Remote, as_json: bool) -> None:
    names = {False: ("tbase", "tserv"), True: ("jbase", "jserv")}[as_json]
    populate(each_remote, *(f"{name}-{number}" for name in names for number in (1, 2, 3)))
    for act in ACTS:
        more = ("--json",) if as_json else ()
        local = each_remote.on_database(*(each.format(names[0]) for each in act), *more)
        there = each_remote.on_server(*(each.format(names[1]) for each in act), *more)
        assert _plain(there, names[1]) == _plain(local, names[0]), act
        assert "Traceback" not in there.stderr


def _plain(ended: Ended, name: str) -> tuple[int, str, str]:
    return ended.returncode, _plain_text(ended.stdout, name), _plain_text(ended.stderr, name)


def _plain_text(text: str, name: str) -> str:
    text = text.replace(name, "NAME")
    text = re.sub(r"sma_[a-z2-7_]+", "SECRET", text)
    text = re.sub(r'(id"?:? +"?|\()[a-z2-7]{10}\b', "ID", text)
    text = re.sub(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d[:.\dZ]*", "TIME", text)
    return re.sub(r'"actor": "[^"]*"', "ACTOR", text)


def test_the_trail_tells_the_key_and_the_request(each_remote: Remote) -> None:
    done = each_remote.on_server("keys", "create", "of the trail", "--scope", "read", role="admin")
    assert done.returncode == 0, done.stderr
    listed = json.loads(each_remote.on_server("acts", "list", "--limit", "1", "--json").stdout)
    [act] = listed["acts"]
    assert (act["source"], act["actor"], act["role"]) == ("api", "a admin", "admin")
    assert act["after"]["name"] == "of the trail"
    assert act["request_id"]
