"""Create, rotate and revoke access keys over HTTP, and review flags."""

from typing import Any

import pytest

from birthmark_sma.authority.devices.abuse_flags import Flag, FlagMode, add_flags, lock_flags
from tests.integration.web.api.administration.conftest import Administered
from tests.support.access_keys import bearer
from tests.support.days import current_time
from tests.support.programs.running import new_serial, wait_until


def works(server: Administered, secret: str) -> bool:
    with server.running.client(headers=bearer(secret)) as client:
        return client.get("/stats").status_code == 200


def test_a_key_from_its_creation_to_its_end(server: Administered) -> None:
    """The secret is shown once, and works until the key is rotated and revoked."""
    name = new_serial("desk")
    body = {"name": name, "scope": "monitor", "rate_limit": "none"}
    created = server.ask("admin", "POST", "/keys", json=body)
    server.check_schema("/keys", created, "POST")
    key = created.json()
    wait_until(lambda: works(server, key["key"]), 10)
    shown = server.ask("admin", "GET", f"/keys/{key['id']}")
    server.check_schema("/keys/{key}", shown)
    assert key["key"] not in shown.text
    assert shown.json()["name"] == name
    assert shown.json() == server.read(f"/keys/{name}", "admin")
    rotated = server.act(f"/keys/{name}/rotate", "admin", grace_seconds=0)
    wait_until(lambda: works(server, rotated["key"]), 10)
    assert not works(server, key["key"])
    assert server.act(f"/keys/{key['id']}/revoke", "admin")["state"] == "revoked"
    wait_until(lambda: not works(server, rotated["key"]), 10)
    gone = server.ask("admin", "POST", f"/keys/{name}/revoke", json={})
    assert gone.status_code == 404
    kinds = [each["act"] for each in server.read("/acts", subject=key["id"])["acts"]]
    assert kinds == ["access-key.revoke", "access-key.rotate", "access-key.create"]
    assert name in str(server.read("/keys", "admin", all="true", limit=1000))
    assert name not in str(server.read("/keys", "admin", limit=1000))


def test_a_lost_secret_is_sent_again(server: Administered) -> None:
    """With the Idempotency-Key, and to this caller alone. The database has it encrypted only."""
    body = {"name": new_serial("desk"), "scope": "read"}
    once = {"Idempotency-Key": new_serial()}
    first, again = (server.ask("admin", "POST", "/keys", json=body, headers=once) for _ in range(2))
    assert (again.status_code, again.json()) == (200, first.json())
    secret = first.json()["key"]
    stored = server.running.rows("SELECT sealed_response FROM idempotent_responses")
    assert stored
    assert not any(secret.encode() in bytes(row[0]) for row in stored)
    without = server.ask("admin", "POST", "/keys", json=body)
    assert (without.status_code, without.json()["title"]) == (409, "Access key exists")


@pytest.mark.parametrize(
    ("terms", "status"),
    [
        ({"scope": "owner"}, 422),
        ({"scope": "read", "uses_allowed": 1}, 422),
        ({"scope": "monitor", "disclosure": "none"}, 422),
        ({"scope": "provision", "uses_allowed": 0}, 422),
        ({"scope": "read", "rate_limit": "often"}, 422),
        ({"scope": "read", "expires_at": "2020-01-01T00:00:00Z"}, 422),
        ({"scope": "read", "expires_at": "0001-01-01T00:00:00+14:00"}, 422),
        ({"scope": "read", "client_certificate": "x"}, 422),
        ({"scope": "read", "client_certificate": "x", "client_issuer": "x"}, 422),
        ({"scope": "read", "name": "a\nb"}, 422),
        ({"scope": "read", "name": ""}, 422),
        ({}, 422),
    ],
    ids=str,
)
def test_a_key_that_is_refused(server: Administered, terms: dict[str, Any], status: int) -> None:
    acts = server.count_acts()
    body = {"name": new_serial("desk"), **terms}
    answer = server.ask("admin", "POST", "/keys", json=body)
    assert answer.status_code == status, answer.text
    assert server.count_acts() == acts


def test_a_key_that_another_operator_changed(server: Administered) -> None:
    """Uses change nothing about the tag; a rotation does."""
    key = server.act("/keys", "admin", name=new_serial("desk"), scope="monitor")
    path = f"/keys/{key['id']}"
    tag = server.ask("admin", "GET", path).headers["etag"]
    wait_until(lambda: works(server, key["key"]), 10)
    assert server.ask("admin", "GET", path).headers["etag"] == tag
    server.act(f"{path}/rotate", "admin", grace_seconds=60)
    for value, status in ((tag, 412), ("*", 200)):
        answer = server.ask("admin", "POST", f"{path}/revoke", json={}, headers={"If-Match": value})
        assert answer.status_code == status


def flag(server: Administered, serial: str, pictures: int) -> None:
    today = current_time()
    with server.database.write() as transaction:
        lock_flags(transaction)
        new = Flag(serial, today.date(), FlagMode.FLAG, pictures, 2.0, 14, 20, today)
        add_flags(transaction, [new])


def test_flags_are_listed_and_reviewed(server: Administered) -> None:
    serials = [server.provision() for _ in range(3)]
    for pictures, serial in enumerate(serials, start=1_000_000):
        flag(server, serial, pictures)
    found: list[str] = []
    cursor: dict[str, str] = {}
    for _ in range(3):
        page = server.read("/flags", limit=1, **cursor)
        found += [each["device_serial"] for each in page["flags"]]
        cursor = {"cursor": page["next_cursor"]}
    assert found == serials[::-1]
    answer = server.ask(
        "operate", "POST", "/flags/review", json={"device_serial": serials[0].upper()}
    )
    server.check_schema("/flags/review", answer, "POST")
    assert answer.json() == {"device_serial": serials[0], "reviewed": 1}
    for body, status in (
        ({"device_serial": serials[0]}, 404),
        ({"device_serial": "nobody"}, 404),
        ({"device_serial": serials[1], "day": "2026-13-01"}, 422),
        ({"device_serial": serials[1], "day": "2020-01-01"}, 404),
    ):
        assert server.ask("operate", "POST", "/flags/review", json=body).status_code == status
    [newest] = server.read("/acts", subject=serials[0], limit=1)["acts"]
    assert (newest["act"], newest["actor"]) == ("device.review-flags", "a operate")
