"""A real sandbox does what its list says, on both kinds of database."""

import base64
import secrets
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx2
import pytest
from cryptography import x509
from cryptography.x509.oid import NameOID

from birthmark_sma.authority.sandbox.verdicts import VERDICTS
from birthmark_sma.protocol.verdict import Reason
from birthmark_sma.web.sandbox import scenario_catalog
from tests.integration.conftest import PAGES
from tests.support.cameras.camera import (
    PROVISION,
    VALIDATE,
    Camera,
    provision_body,
    wire,
)
from tests.support.programs.running import Running, new_serial

BATCH = f"{VALIDATE}/batch"
PUBLISHED = "/validate"
LEGACY = "/validate-legacy"
CRL = "/pki/intermediate.crl"


def token_for(table_id: int, key_index: int = 0) -> dict[str, Any]:
    """A camera token as somebody types it."""
    nonce = f"{time.monotonic_ns():024x}"[-24:]
    return {
        "encrypted_nuc_hash": "00" * 48,
        "table_id": table_id,
        "key_index": key_index,
        "nonce": nonce,
    }


def packed_token() -> dict[str, Any]:
    """One as published Raspberry Pi clients pack them, which nobody made."""
    text = base64.b64encode(secrets.token_bytes(60))
    return {"ciphertext": text.hex(), "table_references": [0, 1, 2], "key_indices": [3, 4, 5]}


def published_token() -> dict[str, Any]:
    """One in the form of the published clients, which nobody made."""
    token = {"ciphertext": "00" * 32, "auth_tag": "00" * 16, "nonce": secrets.token_hex(12)}
    return {
        "camera_token": token | {"table_id": 1, "key_index": 0},
        "manufacturer_authority_id": "TEST_MFG_001",
    }


def asking(scenario: str) -> Mapping[str, str]:
    return {scenario_catalog.HEADER: scenario}


def reasons_of(running: Running) -> list[str]:
    return [row[0] for row in running.rows("SELECT reason FROM validation_history ORDER BY id")]


def newest_reason(running: Running) -> str:
    rows = running.rows("SELECT reason FROM validation_history ORDER BY validated_at DESC LIMIT 1")
    return str(rows[0][0])


@pytest.mark.parametrize("reason", Reason)
def test_verdicts_by_table_id_and_by_header(each_sandbox: Running, reason: Reason) -> None:
    """The caller learns what it would in earnest, and the audit trail has the reason."""
    [scenario] = [
        each
        for each in scenario_catalog.ALL
        if each.table_id is not None and VERDICTS.get(each.table_id) is reason
    ]
    assert scenario.table_id is not None
    with each_sandbox.client() as client:
        camera = Camera.provisioned(client, new_serial())
        for answer in (
            client.post(VALIDATE, json=token_for(scenario.table_id)),
            client.post(VALIDATE, json=wire(camera.token()), headers=asking(scenario.name)),
        ):
            told = answer.json()
            assert answer.status_code == (200 if reason.told_to_caller is None else 400)
            assert told["validation_result"] == reason.verdict.value
            assert told.get("error") == reason.told_to_caller
            assert newest_reason(each_sandbox) == reason.value
            assert answer.headers[scenario_catalog.HEADER] == scenario.name
            # Not even on PASS: whoever compares serials would find another camera's.
            assert told.get("device_serial") is told.get("device_family") is None
        batch = client.post(BATCH, json={"tokens": [token_for(scenario.table_id)]})
        [result] = batch.json()["results"]
        assert result["validation_result"] == reason.verdict.value
        rows = each_sandbox.rows(
            "SELECT reason, batch_position FROM validation_history WHERE request_id = ?",
            batch.headers["x-request-id"],
        )
        assert rows == [(reason.value, 0)]


def test_without_a_scenario_it_is_an_authority(each_sandbox: Running) -> None:
    """Real cameras get real verdicts, and every answer says what this is."""
    with each_sandbox.client() as client:
        camera = Camera.provisioned(client, new_serial())
        passed = client.post(VALIDATE, json=wire(camera.token()))
        failed = client.post(VALIDATE, json=wire(camera.token(nuc_hash=bytes(32))))
        assert passed.json()["device_serial"] == camera.serial
        assert failed.json()["validation_result"] == "FAIL"
        for answer in (
            passed,
            failed,
            client.get("/health"),
            client.get("/nothing"),
            client.get("/docs"),
            client.post(VALIDATE, content=b"{"),
        ):
            assert answer.headers[scenario_catalog.MARK] == scenario_catalog.MARKED
            assert scenario_catalog.HEADER not in answer.headers


def test_what_is_not_http_is_told_so_by_a_sandbox(sandbox: Running) -> None:
    """The mark is also on what is answered before there is a request."""
    with sandbox.client() as client:
        answer = client.get("/health", headers={"x": "y" * 70_000})
    assert answer.status_code == 431
    assert answer.headers[scenario_catalog.MARK] == scenario_catalog.MARKED


@pytest.mark.parametrize(
    ("scenario", "status", "slug"),
    [
        ("unauthenticated", 401, "unauthenticated"),
        ("forbidden", 403, "insufficient-scope"),
        ("rate-limited; seconds=7", 429, "rate-limited"),
        ("internal-error", 500, "internal-error"),
        ("unavailable; seconds=7", 503, "database-unavailable"),
    ],
)
def test_problems(client: httpx2.Client, scenario: str, status: int, slug: str) -> None:
    """The very documents of the authority, and Retry-After where one belongs."""
    name, _, seconds = scenario.partition("; seconds=")
    table_id = scenario_catalog.BY_NAME[name].table_id
    assert table_id is not None
    by_token = token_for(table_id, int(seconds or 0))
    for answer in (
        client.post(VALIDATE, json=token_for(1), headers=asking(scenario)),
        client.post(VALIDATE, json=by_token),
        client.post(BATCH, json={"tokens": [token_for(9_000), by_token]}),
    ):
        assert answer.status_code == status
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["type"] == f"urn:birthmark:problem:{slug}"
        assert "validation_result" not in answer.json()
        assert answer.headers.get("retry-after") == (seconds or None)
        assert answer.headers["x-request-id"] == answer.json()["request_id"]


def test_what_was_submitted_before(each_sandbox: Running) -> None:
    """409 for a token alone; in a batch its element has an error, and spoils no other."""
    before = token_for(9_409)
    with each_sandbox.client() as client:
        for body, headers in ((before, {}), (token_for(1), asking("already-submitted"))):
            answer = client.post(VALIDATE, json=body, headers=headers)
            assert answer.status_code == 409
            assert answer.json()["type"] == "urn:birthmark:problem:token-already-submitted"
            assert newest_reason(each_sandbox) == "genuine"  # it is recorded all the same
        tokens = [token_for(9_000), before, token_for(9_002), {"table_id": 9_409, "key_index": 0}]
        results = client.post(BATCH, json={"tokens": tokens}).json()["results"]
        assert [each.get("validation_result") for each in results] == ["PASS", None, "FAIL", "FAIL"]
        assert set(results[1]) == {"error"}
        assert "encrypted_nuc_hash" in results[3]["error"]
        by_header = client.post(
            BATCH, json={"tokens": tokens}, headers=asking("already-submitted")
        ).json()["results"]
        assert [each.get("validation_result") for each in by_header] == [None, None, None, "FAIL"]
        several = {"tokens": [before, token_for(9_503)]}
        assert client.post(BATCH, json=several).status_code == 503
        malformed = client.post(VALIDATE, json={"table_id": 9_409, "key_index": 0})
        assert malformed.status_code == 422


def test_a_conflict_and_other_problems_of_provisioning(client: httpx2.Client) -> None:
    """By serial; nothing is registered."""
    expected = {"CONFLICT": 409, "RATE-LIMITED": 429, "UNAVAILABLE-7": 503, "FORBIDDEN": 403}
    for name, status in expected.items():
        for _ in range(2):
            serial = f"SANDBOX-{name}"
            assert client.post(PROVISION, json=provision_body(serial)).status_code == status


@pytest.mark.parametrize("path", [VALIDATE, BATCH])
def test_connections_that_break(client: httpx2.Client, path: str) -> None:
    def body(table_id: int) -> dict[str, Any]:
        token = token_for(table_id)
        return token if path == VALIDATE else {"tokens": [token]}

    for table_id in (9_901, 9_903):
        with pytest.raises(httpx2.RemoteProtocolError):
            client.post(path, json=body(table_id))
    with pytest.raises(httpx2.ReadError):
        client.post(path, json=body(9_902))
    garbage = client.post(path, json=body(9_904))
    assert (garbage.status_code, garbage.headers["content-type"][:9]) == (200, "text/html")
    assert client.post(path, json=body(9_905)).status_code == 302


def test_slow_is_slow_and_holds_up_nobody(client: httpx2.Client) -> None:
    """The others are answered meanwhile."""
    with ThreadPoolExecutor(1) as pool:
        began = time.monotonic()
        slow = pool.submit(client.post, VALIDATE, json=token_for(9_900, 2))
        time.sleep(0.2)
        assert client.post(VALIDATE, json=token_for(9_000)).status_code == 200
        assert time.monotonic() - began < 1.5
        assert slow.result().json()["validation_result"] == "PASS"
        assert time.monotonic() - began >= 2


def test_what_recovers_does_so_for_the_very_same_request(client: httpx2.Client) -> None:
    """And begins anew behind the true answer: the next run of a test meets the same."""
    token, other = token_for(9_906, 2), token_for(9_906, 2)
    statuses = [client.post(VALIDATE, json=token).status_code for _ in range(6)]
    assert statuses == [503, 503, 200, 503, 503, 200]
    assert client.post(VALIDATE, json=other).status_code == 503


def test_a_lost_answer_is_there_with_its_idempotency_key(each_sandbox: Running) -> None:
    """Threat 8: and without one the serial is taken."""
    serial = f"SANDBOX-LOST-{new_serial()}"
    body, headers = provision_body(serial), {"Idempotency-Key": serial}
    with each_sandbox.client() as client:
        with pytest.raises(httpx2.RemoteProtocolError):
            client.post(PROVISION, json=body, headers=headers)
        assert each_sandbox.rows(
            "SELECT count(*) FROM registered_devices WHERE device_serial = ?", serial
        ) == [(1,)]
        again = client.post(PROVISION, json=body, headers=headers)
        assert again.status_code == 200
        assert again.json()["certificate_chain"]
        with pytest.raises(httpx2.RemoteProtocolError):  # it begins anew
            client.post(PROVISION, json=body)
        assert client.post(PROVISION, json=body).status_code == 409


# --- the published clients' form


@pytest.mark.parametrize(
    ("scenario", "told"),
    [
        ("pass", {"valid": True, "message": "The camera token is valid."}),
        ("fail-device-revoked", {"valid": False, "message": "The camera token is not valid."}),
        ("unknown-table", {"valid": False, "message": "Unknown table ID"}),
    ],
)
def test_published_clients_get_verdicts_by_header(
    each_sandbox: Running, scenario: str, told: dict[str, Any]
) -> None:
    """Whatever is in the token; and without the header it is judged as ever."""
    with each_sandbox.client() as client:
        answer = client.post(PUBLISHED, json=published_token(), headers=asking(scenario))
        assert (answer.status_code, answer.json()) == (200, told)
        reason = VERDICTS[scenario_catalog.BY_NAME[scenario].table_id or 0]
        assert newest_reason(each_sandbox) == reason.value
        plain = client.post(PUBLISHED, json=published_token())
        assert (plain.status_code, plain.json()["valid"]) == (200, False)
        malformed = client.post(PUBLISHED, json={}, headers=asking(scenario))
        assert malformed.json()["message"].startswith("The request is malformed: ")
        packed = client.post(LEGACY, json=packed_token(), headers=asking(scenario))
        assert (packed.status_code, packed.json()) == (200, told)
        assert newest_reason(each_sandbox) == reason.value


def test_published_clients_meet_failures_each_request_by_itself(client: httpx2.Client) -> None:
    one, other = published_token(), published_token()
    headers = asking("recovers; times=1")
    statuses = [
        client.post(PUBLISHED, json=each, headers=headers).status_code
        for each in (one, other, one, other)
    ]
    assert statuses == [503, 503, 200, 200]
    answer = client.post(PUBLISHED, json=one, headers=asking("already-submitted"))
    assert (answer.status_code, answer.json()["status"]) == (409, 409)
    with pytest.raises(httpx2.RemoteProtocolError):
        client.post(PUBLISHED, json=one, headers=asking("lost"))
    assert client.post(PUBLISHED, json=one, headers=asking("lost")).status_code == 200


# --- devices and time


def leaf_of(answer: httpx2.Response) -> x509.Certificate:
    assert answer.status_code == 200, answer.text
    return x509.load_pem_x509_certificate(answer.json()["device_certificate"].encode())


def test_certificates_of_other_times(each_sandbox: Running) -> None:
    """By serial and by header; the rest of the chain is good, and the row says the true time."""
    now = datetime.now(UTC)
    with each_sandbox.client() as client:
        for name, first, last in (("EXPIRED", -741, -739), ("NOT-YET-VALID", 6, 8)):
            body = provision_body(f"SANDBOX-{name}-{new_serial()}")
            leaf = leaf_of(client.post(PROVISION, json=body))
            assert timedelta(first) < leaf.not_valid_before_utc - now < timedelta(last)
        serial = new_serial()
        body = provision_body(serial)
        answer = client.post(PROVISION, json=body, headers=asking("clock; days=-900"))
        leaf = leaf_of(answer)
        intermediate = x509.load_pem_x509_certificate(
            answer.json()["certificate_chain"][0].encode()
        )
        assert leaf.not_valid_after_utc < now - timedelta(150)
        assert intermediate.not_valid_before_utc < leaf.not_valid_before_utc
        leaf.verify_directly_issued_by(intermediate)
        # The clock is right again for everybody else.
        leaf = leaf_of(client.post(PROVISION, json=provision_body(new_serial())))
        assert leaf.not_valid_before_utc <= now <= leaf.not_valid_after_utc
    row = each_sandbox.rows(
        "SELECT provisioned_at FROM registered_devices WHERE device_serial = ?", serial
    )
    assert str(row[0][0]).startswith(str(now.date())[:7])


def test_the_clock_travels_for_one_request_alone(client: httpx2.Client) -> None:
    """Not for another one of the same serial at the same time, whichever of the two is first."""
    now = datetime.now(UTC)
    with ThreadPoolExecutor(2) as pool:
        for _ in range(15):
            body = provision_body(new_serial())
            travelling, plain = (
                pool.submit(client.post, PROVISION, json=body, headers=headers)
                for headers in (asking("clock; days=-900"), {})
            )
            answers = {-900: travelling.result(), 0: plain.result()}
            statuses = sorted(each.status_code for each in answers.values())
            assert statuses == [200, 409]
            for days, answer in answers.items():
                if answer.status_code == 200:
                    since = leaf_of(answer).not_valid_before_utc - now - timedelta(days)
                    assert abs(since) < timedelta(days=1)


@pytest.mark.parametrize("state", ["revoked", "suspended", "retired"])
def test_devices_that_are_taken_out_at_once(each_sandbox: Running, state: str) -> None:
    """Their tokens FAIL, and they are on the list; the repetition answers the same."""
    serial = f"SANDBOX-{state.upper()}-{new_serial()}"
    body, headers = provision_body(serial), {"Idempotency-Key": serial}
    with each_sandbox.client() as client:
        first = client.post(PROVISION, json=body, headers=headers)
        camera = Camera.of(serial, first.json())
        failed = client.post(VALIDATE, json=wire(camera.token())).json()
        assert failed["validation_result"] == "FAIL"
        assert newest_reason(each_sandbox) == f"device_{state}"
        assert client.post(PROVISION, json=body, headers=headers).json() == first.json()
        crl = x509.load_der_x509_crl(client.get(CRL, headers=asking("clock; days=0")).content)
        number = leaf_of(first).serial_number
        assert crl.get_revoked_certificate_by_serial_number(number) is not None


def test_the_clock_of_answers_and_of_the_list(client: httpx2.Client) -> None:
    now = datetime.now(UTC)
    travelled = asking("clock; days=30")
    one = client.post(VALIDATE, json=token_for(9_000), headers=travelled).json()
    batch = client.post(
        BATCH, json={"tokens": [token_for(9_000), token_for(9_006)]}, headers=travelled
    ).json()
    for text in (one["timestamp"], batch["results"][0]["timestamp"]):
        assert timedelta(29) < datetime.fromisoformat(text) - now < timedelta(31)
    old = x509.load_der_x509_crl(client.get(CRL, headers=asking("clock; days=-30")).content)
    assert old.next_update_utc is not None
    assert old.next_update_utc < now - timedelta(28)
    new = x509.load_der_x509_crl(client.get(CRL).content)
    assert new.next_update_utc is not None
    assert new.next_update_utc > now


# --- what is asked wrongly, and what is said of it all


@pytest.mark.parametrize(
    ("method", "path", "scenario"),
    [
        ("GET", "/health", "no-such-thing"),
        ("GET", "/health", "fail-not-opened"),
        ("POST", VALIDATE, "expired"),
        ("POST", PROVISION, "pass"),
        ("GET", "/health", "clock; days=3"),
        ("POST", VALIDATE, "slow; seconds=9999"),
    ],
)
def test_what_cannot_be_asked_for(
    client: httpx2.Client, method: str, path: str, scenario: str
) -> None:
    answer = client.request(method, path, json=token_for(9_000), headers=asking(scenario))
    assert answer.status_code == 400
    assert answer.json()["type"] == "urn:birthmark:problem:unknown-scenario"
    assert "validation_result" not in answer.json()


def test_a_page_of_another_site_gets_no_script_played(client: httpx2.Client) -> None:
    """Threat 22: one whose name resolves to this machine is turned away as ever, first."""
    for scenario in ("garbage", "unauthenticated", "no-such-thing"):
        headers = {**asking(scenario), "Host": "pages.example.org"}
        for path in ("/health", "/sandbox"):
            answer = client.get(path, headers=headers)
            assert answer.status_code == 421
            assert scenario_catalog.HEADER not in answer.headers
        answer = client.post(VALIDATE, json=token_for(9_904), headers={"Host": "a.example"})
        assert answer.status_code == 421


def test_a_page_that_may_call_may_ask_and_read(client: httpx2.Client) -> None:
    """CORS names the sandbox's own header fields beside the others."""
    asked = client.options(
        VALIDATE,
        headers={
            "Origin": PAGES,
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": f"content-type, {scenario_catalog.HEADER.lower()}",
        },
    )
    assert asked.status_code == 200, asked.text
    answer = client.post(VALIDATE, json=token_for(9_429), headers={"Origin": PAGES})
    readable = answer.headers["access-control-expose-headers"]
    assert {scenario_catalog.HEADER, scenario_catalog.MARK, "Retry-After"} <= set(
        readable.split(", ")
    )


def test_two_headers_are_refused(client: httpx2.Client) -> None:
    headers = [(scenario_catalog.HEADER, "cut"), (scenario_catalog.HEADER, "reset")]
    assert client.get("/health", headers=headers).status_code == 400


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"9000",
        b'{"tokens": 9000}',
        b'{"device_serial": ["SANDBOX-CUT"]}',
        b"[" * 60_000,
        b'{"table_id": 9000, "table_id": 9001, "key_index": 0}',
        b"\xff\xfe",
        b"x" * 3_000_000,
    ],
)
@pytest.mark.parametrize("path", [VALIDATE, BATCH, PUBLISHED, PROVISION])
def test_malformed_bodies_are_refused_as_ever(
    client: httpx2.Client, path: str, body: bytes
) -> None:
    """Threat 21: looking for scripts makes nothing of them that the authority would not."""
    headers = {"content-type": "application/json"}
    for more in ({}, asking("recovers"), asking("fail-not-opened"), asking("already-submitted")):
        try:
            answer = client.post(path, content=body, headers={**headers, **more})
        except httpx2.TransportError:
            assert len(body) > 1_000_000  # closed while it was still being sent
            continue
        if path == PUBLISHED and answer.status_code == 200:  # all that those clients understand
            assert answer.json()["message"].startswith("The request is malformed: ")
            continue
        # A published client gets an answer for a malformed token, and a script may replace it.
        asked_for = {409} if path == PUBLISHED and more == asking("already-submitted") else set()
        assert answer.status_code in {400, 413, 422, 503} | asked_for
        assert not {"validation_result", "valid"} & answer.json().keys()


def test_the_list_and_the_document(client: httpx2.Client) -> None:
    """/sandbox lists everything, and OpenAPI has the header with every operation."""
    listed = client.get("/sandbox").json()
    assert [each["name"] for each in listed["scenarios"]] == [
        each.name for each in scenario_catalog.ALL
    ]
    assert listed["data_kept_seconds"] == 3600
    document = client.get("/openapi.json").json()
    assert document["info"]["title"].endswith("(SANDBOX)")
    for operations in document["paths"].values():
        for operation in operations.values():
            assert scenario_catalog.HEADER in [each["name"] for each in operation["parameters"]]
            for answer in operation["responses"].values():
                assert scenario_catalog.MARK in answer["headers"]


def test_its_certificates_say_what_they_are(each_sandbox: Running) -> None:
    """Threat 51: root, intermediate, device and CRL cannot be taken for others."""
    with each_sandbox.client() as client:
        answer = client.post(PROVISION, json=provision_body(new_serial())).json()
        names = [x509.load_der_x509_crl(client.get(CRL).content).issuer]
    for pem in (answer["device_certificate"], *answer["certificate_chain"]):
        certificate = x509.load_pem_x509_certificate(pem.encode())
        names += [certificate.subject, certificate.issuer]
    for name in names:
        [organization] = name.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)
        assert str(organization.value).startswith("SANDBOX ")


def test_many_at_once(client: httpx2.Client) -> None:
    """Scripts do not get mixed up between requests."""
    expected: dict[int | str, tuple[int, str | None]] = {
        9_000: (200, "PASS"),
        9_001: (200, "FAIL"),
        9_429: (429, None),
        9_503: (503, None),
        9_906: (503, None),
        "pass": (200, "PASS"),
        "fail-not-opened": (200, "FAIL"),
        "unknown-table": (400, "FAIL"),
        "already-submitted": (409, None),
        "unavailable": (503, None),
    }

    def ask(wanted: int | str) -> tuple[int | str, httpx2.Response]:
        by_table = isinstance(wanted, int)
        token = token_for(wanted if isinstance(wanted, int) else 1)
        headers = {} if by_table else asking(str(wanted))
        return wanted, client.post(VALIDATE, json=token, headers=headers)

    with ThreadPoolExecutor(16) as pool:
        for wanted, answer in pool.map(ask, [*expected] * 15):
            told = (answer.status_code, answer.json().get("validation_result"))
            assert told == expected[wanted], wanted
