"""Suspend, reinstate, revoke, retire and re-enrol devices over HTTP; one, and many."""

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote

import pytest

from tests.integration.web.api.administration.conftest import Administered
from tests.support.programs.running import new_serial

WHO = {"actor": "a operate", "role": "operate", "source": "api"}


def status_of(server: Administered, serial: str) -> str:
    return str(server.read(f"/devices/{quote(serial, safe='')}")["status"])


def test_the_life_of_a_device(server: Administered) -> None:
    """Each act has a record with the key, its role and the request id."""
    serial = server.provision()
    for act, reason, status in (
        ("suspend", "certificate_hold", "suspended"),
        ("reinstate", None, "active"),
        ("retire", "cessation_of_operation", "retired"),
        ("revoke", "key_compromise", "revoked"),
    ):
        body = {} if reason is None else {"reason": reason}
        answer = server.ask(
            "operate",
            "POST",
            f"/devices/{serial}/{act}",
            json=body,
            headers={"X-Request-ID": f"{act}-{serial}"},
        )
        assert answer.status_code == 200, answer.text
        done = answer.json()
        assert (done["act"], done["done"], done["changed"]) == (act, True, [serial])
        server.check_schema(f"/devices/{{serial}}/{act}", answer, "POST")
        assert status_of(server, serial) == status
        [newest] = server.read("/acts", subject=serial, limit=1)["acts"]
        assert (
            newest.items()
            >= (
                WHO | {"act": f"device.{act}", "request_id": f"{act}-{serial}", "reason": reason}
            ).items()
        )
        assert newest["after"]["status"] == status


def test_repeating_an_act_records_nothing(server: Administered) -> None:
    serial = server.provision()
    server.act(f"/devices/{serial}/suspend")
    acts = server.count_acts()
    again = server.act(f"/devices/{serial}/suspend", reason="certificate_hold")
    assert (again["changed"], again["unchanged"]) == ([], [serial])
    assert server.count_acts() == acts


def test_what_cannot_be_done_changes_nothing(server: Administered) -> None:
    """404 and 409 name the device; 422 names the field."""
    serial = server.provision()
    server.act(f"/devices/{serial}/revoke")
    acts = server.count_acts()
    soon = (datetime.now(UTC) + timedelta(days=1)).isoformat()
    cases: list[tuple[str, dict[str, Any], int, str]] = [
        (f"{serial}/reinstate", {}, 409, serial),
        (f"{serial}/retire", {}, 409, serial),
        (f"{serial}/re-enrol", {}, 409, serial),
        ("nobody/suspend", {}, 404, "nobody"),
        (f"{serial}/suspend", {"reason": "superseded"}, 422, "reason"),
        (f"{serial}/suspend", {"x": 1}, 422, "x"),
        (f"{serial}/revoke", {"reason": "certificate_hold"}, 422, "reason"),
        (f"{serial}/revoke", {"compromised_since": "2026-01-01T00:00:00Z"}, 422, "compromised"),
        (
            f"{serial}/revoke",
            {"reason": "key_compromise", "compromised_since": soon},
            *(422, "future"),
        ),
        (
            f"{serial}/revoke",
            {"reason": "key_compromise", "compromised_since": "2026-01-01T00:00:00"},
            *(422, "zone"),
        ),
        (f"{serial}/re-enrol", {"seconds": 0}, 422, "seconds"),
        (f"{serial}/re-enrol", {"seconds": "60"}, 422, "seconds"),
    ]
    for path, body, status, told in cases:
        answer = server.ask("operate", "POST", f"/devices/{path}", json=body)
        assert answer.status_code == status, (path, body, answer.text)
        assert told in answer.text
        assert answer.headers["content-type"] == "application/problem+json"
    for headers in ({}, {"Content-Type": "text/plain"}):
        answer = server.ask("operate", "POST", f"/devices/{serial}/suspend", headers=headers)
        assert answer.status_code == 415, "a page of another site can send this"
    assert server.count_acts() == acts


def test_re_enrolment_is_allowed_and_withdrawn(server: Administered) -> None:
    serial = server.provision()
    allowed = server.act(f"/devices/{serial}/re-enrol", seconds=3_600)
    assert (allowed["device_serial"], allowed["actor"]) == (serial, "a operate")
    assert server.read(f"/devices/{serial}")["re_enrolment_allowed_until"] is not None
    acts = server.count_acts()
    for expected in (1, 1):  # the second finds nothing to withdraw
        withdrawn = server.act(f"/devices/{serial}/re-enrol", cancel=True)
        assert withdrawn == {"device_serial": serial, "allowed_until": None}
        assert server.count_acts() == acts + expected


def test_an_idempotency_key_does_an_act_once(server: Administered) -> None:
    """The first response again, also when the state is another one by now; another body is 422."""
    serial = server.provision()
    once = {"Idempotency-Key": new_serial()}
    path = f"/devices/{serial}/suspend"
    first = server.ask("operate", "POST", path, json={}, headers=once)
    server.act(f"/devices/{serial}/reinstate")
    acts = server.count_acts()
    stale = {"If-Match": '"stale"'}
    again = server.ask("operate", "POST", path, json={}, headers=once | stale)
    assert (again.status_code, again.json()) == (200, first.json())
    assert (status_of(server, serial), server.count_acts()) == ("active", acts)
    other = server.ask("operate", "POST", f"/devices/{serial}/retire", json={}, headers=once)
    assert (other.status_code, other.json()["type"]) == (
        422,
        "urn:birthmark:problem:idempotency-key-reused",
    )
    of_another_key = server.ask("admin", "POST", path, json={}, headers=once)
    assert of_another_key.json()["changed"] == [serial]


def test_a_refused_act_frees_its_idempotency_key(server: Administered) -> None:
    serial, once = new_serial(), {"Idempotency-Key": new_serial()}
    for status in (404, 200):
        answer = server.ask("operate", "POST", f"/devices/{serial}/suspend", json={}, headers=once)
        assert answer.status_code == status
        if status == 404:
            server.provision(serial)


def test_equal_requests_at_once_are_one_act(server: Administered) -> None:
    serial, once = server.provision(), {"Idempotency-Key": new_serial()}
    acts = server.count_acts()

    def send(_: int) -> Any:
        path = f"/devices/{serial}/re-enrol"
        return server.ask("operate", "POST", path, json={}, headers=once).json()

    with ThreadPoolExecutor(6) as threads:
        answers = list(threads.map(send, range(6)))
    assert answers == answers[:1] * 6
    assert "allowed_until" in answers[0]
    assert server.count_acts() == acts + 1


def test_of_two_operators_one_is_told(server: Administered) -> None:
    """If-Match: a stale tag is 412, and nothing is done."""
    serial = server.provision()
    path = f"/devices/{serial}"
    tag = server.ask("read", "GET", path).headers["etag"]
    assert tag == server.ask("read", "GET", path).headers["etag"]

    def suspend(value: str) -> int:
        headers = {"If-Match": value}
        return server.ask(
            "operate", "POST", f"{path}/suspend", json={}, headers=headers
        ).status_code

    for refused, status in (
        ('"other"', 412),
        (f"W/{tag}", 412),
        ("nonsense", 422),
        (f"{tag},", 422),
        (f"{tag} {tag}", 422),
    ):
        assert suspend(refused) == status, refused
    assert status_of(server, serial) == "active"
    assert suspend(f'"other" , {tag}') == 200
    assert suspend(tag) == 412
    assert suspend("*") == 200
    assert server.ask("read", "GET", path).headers["etag"] != tag


@pytest.mark.parametrize("by", ["serials", "criteria"])
def test_many_at_once(server: Administered, by: str) -> None:
    """A preview tells and changes nothing; the act is one record with each device."""
    family = new_serial("family")
    serials = sorted(server.provision(device_family=family) for _ in range(3))
    server.act(f"/devices/{serials[2]}/revoke")
    chosen: dict[str, Any] = {"criteria": {"device_family": family}}
    hit = serials[:2]
    if by == "serials":
        chosen = {"device_serials": hit}
    acts = server.count_acts()
    preview = server.act("/devices/bulk", act="suspend", preview=True, **chosen)
    assert (preview["done"], preview["changed"]) == (False, hit)
    assert preview["counts"] == [{"device_family": family, "status": "active", "devices": 2}]
    assert preview["refused"] == ([] if by == "serials" else [serials[2]])
    assert server.count_acts() == acts
    done = server.act("/devices/bulk", act="suspend", **chosen)
    assert (done["done"], done["changed"]) == (True, hit)
    [act] = server.read("/acts", subject=hit[0], limit=1)["acts"]
    assert act["subjects"] == 2
    whole = server.read(f"/acts/{act['id']}", limit=1)
    assert [each["name"] for each in whole["listed"]] == hit[:1]
    rest = server.read(f"/acts/{act['id']}", limit=1, cursor=whole["next_cursor"])
    assert [each["name"] for each in rest["listed"]] == hit[1:]
    assert rest["next_cursor"] is None


def test_a_bulk_act_by_serials_is_whole_or_nothing(server: Administered) -> None:
    one, two = server.provision(), server.provision()
    server.act(f"/devices/{two}/revoke")
    for others, status in (([two], 409), (["nobody"], 404)):
        body = {"act": "suspend", "device_serials": [one, *others]}
        assert server.ask("operate", "POST", "/devices/bulk", json=body).status_code == status
    assert status_of(server, one) == "active"


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"act": "suspend"},
        {"act": "delete", "device_serials": ["a"]},
        {"act": "suspend", "device_serials": []},
        {"act": "suspend", "device_serials": ["a"] * 10_001},
        {"act": "suspend", "device_serials": ["a\u0000"]},
        {"act": "suspend", "device_serials": ["a" * 65]},
        {"act": "suspend", "device_serials": ["a"], "criteria": {"device_family": "Pi"}},
        {"act": "suspend", "criteria": {}},
        {"act": "suspend", "criteria": {"family": "Pi"}},
        {"act": "suspend", "criteria": {"table": "1"}},
        {"act": "suspend", "device_serials": ["a"], "reason": "superseded"},
        {"act": "retire", "device_serials": ["a"], "compromised_since": "2026-01-01T00:00:00Z"},
        {f"unknown {number}": 1 for number in range(500)},
    ],
    ids=str,
)
def test_a_malformed_bulk_act(server: Administered, body: dict[str, Any]) -> None:
    answer = server.ask("operate", "POST", "/devices/bulk", json=body)
    assert answer.status_code == 422
    assert len(answer.json()["errors"]) <= 20
    assert len(answer.content) < 5_000


def test_a_serial_is_one_segment(server: Administered) -> None:
    """A name of a fixed path, a slash, a plus, a percent sign and other letters are serials."""
    fixed = ["bulk", "provision", "renew"]
    odd = ["a/b", "a+b c", "50%", "caf\u00e9 \u7167\u76f8"]
    for serial in fixed + [f"{each} {new_serial()}" for each in odd]:
        server.provision(serial)
        place = f"/devices/{quote(serial, safe='')}"
        assert server.read(place)["device_serial"] == serial
        assert server.act(f"{place}/suspend")["changed"] == [serial]
    assert server.ask("operate", "POST", "/devices/provision", json={}).status_code == 403
    for method, path, allow in (
        ("PUT", "/devices/bulk", "GET, HEAD, POST"),
        ("GET", "/devices/a/suspend", "POST"),
        ("POST", "/devices/a", "GET, HEAD"),
    ):
        answer = server.ask("operate", method, path)
        assert (answer.status_code, answer.headers["allow"]) == (405, allow), path
    for path in ("a%0Ab", "a%00", "a%7f", "%", "%zz", "%ff", "%c2%85", "", "a/b", "a/suspend/"):
        assert server.ask("read", "GET", f"/devices/{path}").status_code == 404, path
    for control in ("%00", "%0A", "%1f", "%7F", "%C2%80", "%c2%9f"):
        for method, path in (("GET", f"/devices/a{control}"), ("POST", f"/keys/{control}/revoke")):
            assert server.ask("validate", method, path).status_code == 404, "it matches no route"
