"""Lists over HTTP: pages, filters, and the same objects as the commands print."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.integration.web.api.administration.conftest import API, Administered
from tests.support.access_keys import bearer
from tests.support.programs.commands import sma
from tests.support.programs.running import new_serial, wait_until

LISTS = {
    "/devices": ("devices", "read"),
    "/keys": ("keys", "admin"),
    "/flags": ("flags", "read"),
    "/validations": ("validations", "read"),
    "/tables": ("tables", "read"),
    "/issuers": ("issuers", "admin"),
    "/acts": ("acts", "read"),
}
TOKEN = {"encrypted_nuc_hash": "00" * 48, "table_id": 1, "key_index": 1, "nonce": "00" * 12}


def printed(server: Administered, *command: str) -> Any:
    """Return the JSON that a command prints."""
    ran = sma(*command, "--json", environ=server.running.environ)
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


def fail_once(server: Administered, request_id: str) -> None:
    headers = bearer(server.keys["validate"]) | {"X-Request-ID": request_id}
    with server.running.client(headers=headers) as client:
        assert client.post(f"{API}/validate/nuc", json=TOKEN).json()["validation_result"] == "FAIL"


def test_a_command_prints_the_same_objects(server: Administered) -> None:
    """Whoever has a script for one can use the other."""
    serial, request_id = server.provision(), new_serial()
    server.act(f"/devices/{serial}/suspend")
    fail_once(server, request_id)
    shown = server.ask("read", "GET", f"/devices/{serial}")
    server.check_schema("/devices/{serial}", shown)
    assert shown.json() == printed(server, "devices", "show", serial)
    assert server.read("/devices", limit=1000) == printed(
        server, "devices", "list", "--limit", "1000"
    )
    end = (datetime.now(UTC) + timedelta(days=1_000)).isoformat()
    expiring = server.read("/devices", expires_before=end, limit=2)
    assert expiring == printed(
        server, "devices", "list", "--expiring-within", "1000d", "--limit", "2"
    )
    used = {"last_used_at": None}  # written some seconds later
    keys, told = server.read("/keys", "admin"), printed(server, "keys", "list")
    assert [key | used for key in keys["keys"]] == [key | used for key in told["keys"]]
    assert server.read("/flags") == printed(server, "devices", "flagged")
    assert server.read("/validations", request_id=request_id) == printed(
        server, "validations", "list", "--request-id", request_id
    )
    assert server.read(f"/validations/{request_id}") == printed(
        server, "validations", "show", request_id
    )
    assert server.read("/tables") == printed(server, "tables", "list")
    assert server.read("/issuers", "admin") == printed(server, "ca", "list")
    acts = server.read("/acts", limit=2)
    assert acts == printed(server, "acts", "list", "--limit", "2")
    newest = acts["acts"][0]["id"]
    assert server.read(f"/acts/{newest}") == printed(server, "acts", "show", str(newest))
    with server.running.client(headers=bearer(server.keys["monitor"])) as client:
        volatile = {"until", "since"}
        stats = client.get("/stats").json()
    statistics = server.read("/statistics", "monitor")
    assert {k: v for k, v in statistics.items() if k not in volatile}.keys() == {
        k: v for k, v in stats.items() if k not in volatile
    }.keys()


@pytest.mark.parametrize("path", LISTS)
def test_lists_are_as_documented(server: Administered, path: str) -> None:
    server.provision()
    scope = LISTS[path][1]
    answer = server.ask(scope, "GET", path)
    assert answer.status_code == 200
    server.check_schema(path, answer)


@pytest.mark.parametrize("path", ["/devices", "/keys", "/validations", "/tables", "/acts"])
def test_pages_have_each_item_once(server: Administered, path: str) -> None:
    for number in range(4):
        server.provision()
        fail_once(server, f"page-{number}")
    member, scope = LISTS[path]
    whole = server.read(path, scope, limit=1000)[member]
    found, cursor = [], None
    for _ in range(len(whole) // 3 + 1):
        query = {"limit": 3} if cursor is None else {"limit": 3, "cursor": cursor}
        page = server.read(path, scope, **query)
        found += page[member]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    volatile = {"last_used_at": None} if path == "/keys" else {}
    assert cursor is None
    assert [each | volatile for each in found] == [each | volatile for each in whole]


def test_devices_by_filter(server: Administered) -> None:
    family = new_serial("family")
    mine = sorted(server.provision(device_family=family) for _ in range(2))
    server.act(f"/devices/{mine[1]}/suspend")

    def serials(**query: str) -> list[str]:
        return [each["device_serial"] for each in server.read("/devices", **query)["devices"]]

    assert serials(family=family) == mine
    assert serials(family=family, status="suspended") == mine[1:]
    assert serials(begins=mine[0].upper()) == mine[:1]
    assert serials(family=family, flagged="true") == []


@pytest.mark.parametrize(
    ("path", "query", "told"),
    [
        ("/devices", "statuss=active", "status"),
        ("/devices", "status=gone", "suspended"),
        ("/devices", "limit=0", "1,000"),
        ("/devices", "limit=1001", "1,000"),
        ("/devices", "limit=1&limit=2", "once"),
        ("/devices", "flagged=yes", "true or false"),
        ("/devices", "expires_before=soon", "time"),
        ("/devices", "expires_before=2026-01-01&family=a", "no other filter"),
        ("/devices", "expires_before=2026-01-01&cursor=x", "next_cursor"),
        ("/devices", "begins=%00", "printable"),
        ("/devices/a", "x=1", "no parameters"),
        ("/keys", "cursor=nobody", "next_cursor"),
        ("/flags", "cursor=x", "next_cursor"),
        ("/validations", "cursor=x", "next_cursor"),
        ("/validations", "reason=x", "one of"),
        ("/validations", "token_digest=12", "32 hex"),
        ("/validations", "table=-1", "whole number"),
        ("/acts", "cursor=-1", "next_cursor"),
        ("/acts", f"cursor={2**63}", "next_cursor"),
        ("/acts", "act=device.delete", "one of"),
        ("/tables", "cursor=x", "whole number"),
        ("/devices", "family=", "family has no value"),
        ("/validations", "request_id=", "request_id has no value"),
        ("/acts", "subject=%20", "subject has no value"),
    ],
)
def test_a_query_that_cannot_be_used(
    server: Administered, path: str, query: str, told: str
) -> None:
    """A filter that is misspelt, or that has no value, never selects everything."""
    answer = server.ask("admin", "GET", f"{path}?{query}")
    assert answer.status_code == 422, answer.text
    assert told in answer.json()["detail"]


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("/devices/nobody", "nobody"),
        ("/keys/nobody", "nobody"),
        ("/validations/nobody", "nobody"),
        ("/acts/9999999", "9999999"),
        ("/tables/9999", "9999"),
        ("/tables/01", "01"),
        ("/acts/x", "/docs"),
        (f"/acts/{2**63}", "/docs"),
        ("/devices/" + "a" * 129, "/docs"),
    ],
)
def test_what_is_not_there(server: Administered, path: str, told: str) -> None:
    """404 names what was not found."""
    answer = server.ask("admin", "GET", path)
    assert (answer.status_code, told in answer.json()["detail"]) == (404, True), answer.text


def test_a_key_table(server: Administered) -> None:
    answer = server.ask("read", "GET", "/tables/7")
    server.check_schema("/tables/{table_id}", answer)
    assert answer.json()["table_id"] == 7


def test_a_key_that_may_not_read_serials(server: Administered) -> None:
    """Validations and acts come without serials, as in an export; devices and flags not at all.

    A filter by serial would tell whose the rows are.
    """
    serial = server.provision()
    server.act(f"/devices/{serial}/suspend", reason="certificate_hold")
    fail_once(server, "nameless-1")
    made = server.ask(
        "admin", "POST", "/keys", json={"name": new_serial(), "scope": "read", "disclosure": "none"}
    )
    assert made.status_code == 200, made.text
    key = bearer(made.json()["key"])
    with server.running.client(headers=key) as client:
        # A new key is in force within a second.
        wait_until(lambda: client.get(f"{API}/tables").status_code == 200, seconds=10)
        for path in (
            *("/devices", f"/devices/{serial}", "/flags", f"/validations?device={serial}"),
            *(f"/acts?subject={serial}", f"/acts?subject={serial}&kind=device"),
        ):
            refused = client.get(API + path)
            assert (refused.status_code, refused.json()["type"][-18:]) == (
                403,
                "insufficient-scope",
            )
        for path in ("/validations", "/validations/nameless-1", "/acts"):
            answer = client.get(API + path)
            assert answer.status_code == 200, answer.text
            assert serial not in answer.text
            server.check_schema(path.replace("nameless-1", "{request_id}"), answer)
        assert client.get(f"{API}/acts?subject=x&kind=access-key").status_code == 200
        act = next(
            each
            for each in client.get(f"{API}/acts", params={"act": "device.suspend"}).json()["acts"]
        )
        assert act["subject"] is None
        one = client.get(f"{API}/acts/{act['id']}")
        assert (one.json()["listed"], one.json()["next_cursor"]) == ([], None)
        assert serial not in one.text
