"""Who is let in: every route times every scope, and what a key's terms allow."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import httpx2
import pytest
import schemathesis
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from fastapi.routing import APIRoute, APIRouter
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import Case
from schemathesis.specs.openapi.checks import content_type_conformance, status_code_conformance
from starlette.routing import Mount, Route

from birthmark_sma.authority.access.cache import AccessKeyCache
from birthmark_sma.authority.access.caller import Caller
from birthmark_sma.authority.access.keys import KeyTerms, create_key, revoke_key, rotate_key
from birthmark_sma.authority.access.store import KeyScope, change_key
from birthmark_sma.config import Access
from birthmark_sma.device import UNSEALED, Enrolment, start_camera
from birthmark_sma.errors import AuthorityAwayError, ProvisioningRefusedError, UnauthenticatedError
from birthmark_sma.storage.engine import Database
from birthmark_sma.web.api.app import create_app
from birthmark_sma.web.middleware.authentication import Authenticator
from birthmark_sma.web.routes import ROUTES as TABLE
from birthmark_sma.web.routes import Credentials
from tests.support.access_keys import (
    SEEN_SECONDS,
    bearer,
    expired,
    issue,
    secret_of,
    start_with_keys,
)
from tests.support.authorities import new_authority, small_settings
from tests.support.cameras.camera import (
    PROVISION,
    VALIDATE,
    Camera,
    provision_body,
    wire,
)
from tests.support.cameras.renewal import RENEW
from tests.support.databases.postgres import create_database, drop_database
from tests.support.devices.actors import ACTOR
from tests.support.http.contexts import make_context
from tests.support.http.tls import TestCa
from tests.support.programs.running import Running, new_serial, start

BATCH = f"{VALIDATE}/batch"
PUBLISHED = "/validate"
LEGACY = "/validate-legacy"
names = (f"key {number}" for number in count())


class Locked(NamedTuple):
    """A server that asks for keys, one key of each scope, and its database."""

    running: Running
    keys: dict[str, str]
    database: Database

    def client(self, key: str | None = None) -> httpx2.Client:
        return self.running.client(headers={} if key is None else bearer(key))

    def issue(self, scope: str, **terms: Any) -> str:
        """A key that the server knows of already."""
        secret = secret_of(issue(self.database, next(names), scope, **terms))
        with self.client(secret) as client:
            path = "/health"
            known_within(lambda: client.get(path).status_code == 200)
        return secret


def known_within(seen: Callable[[], bool], seconds: float = SEEN_SECONDS) -> None:
    """Wait until the server knows; fail where that takes longer than it may."""
    begun = time.monotonic()
    while not seen():
        assert time.monotonic() - begun < seconds + 1, "this took too long"  # a busy machine
        time.sleep(0.02)


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def locked(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Locked]:
    directory: Path = tmp_path_factory.mktemp("locked")
    if request.param == "sqlite":
        url, dropped = "sqlite:", None
    else:
        admin_url = request.getfixturevalue("postgres_admin_url")
        dropped = f"locked_{directory.name.replace('-', '_')}_{time.time_ns()}"
        url = create_database(admin_url, dropped)
    running, keys = start_with_keys(directory / "data", url, SMA_TABLES="50")
    with running.database() as database:
        yield Locked(running, keys, database)
    running.server.close()
    if dropped is not None:
        drop_database(admin_url, dropped)


# --- the table: which scopes open which route

WINDOW = "/api/v1/devices/renewal-info/{certificate_id}"
MONITOR = {"monitor", "read", "operate", "admin"}
READ = MONITOR - {"monitor"}
OPERATE = READ - {"read"}
ADMIN = {"admin"}
EVERY = {"provision", "validate", *MONITOR}
API = "/api/v1"
ACTS = ("suspend", "reinstate", "revoke", "retire", "re-enrol")
READING = (
    *("/devices", "/devices/{serial}", "/flags", "/validations", "/validations/{request_id}"),
    *("/tables", "/tables/{table_id}", "/acts", "/acts/{act_id}"),
)
OPERATING = ("/devices/bulk", *(f"/devices/{{serial}}/{act}" for act in ACTS), "/flags/review")
ROUTES: dict[tuple[str, str], set[str] | None] = {
    ("POST", PROVISION): {"provision"},
    ("POST", RENEW): None,
    ("GET", WINDOW): None,
    ("POST", VALIDATE): {"validate"},
    ("POST", BATCH): {"validate"},
    ("POST", PUBLISHED): {"validate"},
    ("POST", LEGACY): {"validate"},
    ("POST", "/validate-cert"): {"validate"},
    ("POST", "/validate-cert-legacy"): {"validate"},
    ("GET", "/health"): None,
    ("GET", "/health/live"): None,
    ("GET", "/health/ready"): None,
    ("GET", "/metrics"): MONITOR,
    ("GET", "/stats"): MONITOR,
    ("GET", "/pki/root.crt"): EVERY,
    ("GET", "/pki/intermediate.crt"): EVERY,
    ("GET", "/pki/intermediate.crl"): EVERY,
    ("GET", "/pki/root.crl"): EVERY,
    ("GET", "/pki/ca/{file}"): EVERY,
    ("GET", "/pki/roots.pem"): EVERY,
    ("GET", "/pki/roots.pem.p7s"): EVERY,
    ("GET", "/pki/ocsp/"): EVERY,
    ("POST", "/pki/ocsp/"): EVERY,
    ("GET", "/pki/ocsp/{request}"): EVERY,
    **dict.fromkeys([("GET", API + path) for path in READING], READ),
    **dict.fromkeys([("POST", API + path) for path in OPERATING], READ - {"read"}),
    ("GET", f"{API}/keys"): {"admin"},
    ("POST", f"{API}/keys"): {"admin"},
    ("GET", f"{API}/keys/{{key}}"): {"admin"},
    ("POST", f"{API}/keys/{{key}}/rotate"): {"admin"},
    ("POST", f"{API}/keys/{{key}}/revoke"): {"admin"},
    ("GET", f"{API}/issuers"): {"admin"},
    ("GET", f"{API}/statistics"): MONITOR,
    ("GET", "/"): None,
    ("GET", "/dashboard"): READ,
    ("GET", "/dashboard/callers"): READ,
    ("GET", "/dashboard/act"): READ,
    ("GET", "/dashboard/acts"): READ,
    ("GET", "/dashboard/acts.jsonl"): READ,
    ("GET", "/dashboard/certificates"): READ,
    ("GET", "/dashboard/certificates/download"): READ,
    ("GET", "/dashboard/device"): READ,
    ("GET", "/dashboard/device/certificate"): READ,
    ("GET", "/dashboard/devices"): READ,
    ("GET", "/dashboard/figures"): READ,
    ("GET", "/dashboard/health"): READ,
    ("GET", "/dashboard/health/findings"): READ,
    ("GET", "/dashboard/tables"): READ,
    ("GET", "/dashboard/validation"): READ,
    ("GET", "/dashboard/validations"): READ,
    ("GET", "/dashboard/validations.csv"): READ,
    ("GET", "/dashboard/validations.jsonl"): READ,
    ("GET", "/dashboard/devices/act"): OPERATE,
    ("POST", "/dashboard/devices/act"): OPERATE,
    ("GET", "/dashboard/device/re-enrolment"): OPERATE,
    ("POST", "/dashboard/device/re-enrolment"): OPERATE,
    ("GET", "/dashboard/flags"): READ,
    ("GET", "/dashboard/flags/review"): OPERATE,
    ("POST", "/dashboard/flags/review"): OPERATE,
    ("GET", "/dashboard/keys/create"): ADMIN,
    ("POST", "/dashboard/keys/create"): ADMIN,
    ("GET", "/dashboard/keys/rotate"): ADMIN,
    ("POST", "/dashboard/keys/rotate"): ADMIN,
    ("GET", "/dashboard/keys/revoke"): ADMIN,
    ("POST", "/dashboard/keys/revoke"): ADMIN,
    ("GET", "/dashboard/sign-in"): None,
    ("POST", "/dashboard/sign-in"): None,
    ("POST", "/dashboard/sign-out"): READ,
    ("GET", "/dashboard/static"): None,
    ("GET", "/docs"): EVERY,
    ("GET", "/docs/oauth2-redirect"): EVERY,
    ("GET", "/redoc"): EVERY,
    ("GET", "/openapi.json"): EVERY,
    ("GET", "/static-offline-docs"): EVERY,
}
"""Who opens what; None is anyone. A route that is not here fails the test."""

PLACES = {
    f"{API}/tables/{{table_id}}": f"{API}/tables/1",
    f"{API}/acts/{{act_id}}": f"{API}/acts/1",
    f"{API}/validations/{{request_id}}": f"{API}/validations/none",
    **{
        path: path.format(serial="camera-0001", key="nobody")
        for _, path in ROUTES
        if "{serial}" in path or "{key}" in path
    },
    "/pki/ca/{file}": "/pki/ca/root.crt",
    WINDOW: "/api/v1/devices/renewal-info/AQ.AQ",
    "/dashboard/static": "/dashboard/static/curve.js",
    "/pki/ocsp/{request}": "/pki/ocsp/MAA=",
    "/static-offline-docs": "/static-offline-docs/vendor/swagger-ui/swagger-ui.css",
}
"""What is asked for of a directory, or with a parameter."""


DOCUMENTED = {PROVISION, VALIDATE, BATCH, PUBLISHED, "/health", "/stats", "/pki/root.crt"}


def all_routes() -> set[tuple[str, str]]:
    """Every method and path that the application has, HEAD apart, which is as GET."""
    app = create_app(lambda: pytest.fail("no authority is opened here"))
    found = set()
    waiting = list(app.routes)
    for route in waiting:
        included: APIRouter | None = getattr(route, "original_router", None)
        if included is not None:
            waiting += included.routes
        elif isinstance(route, Mount):
            found.add(("GET", route.path))
        elif isinstance(route, APIRoute | Route):
            found |= {(method, route.path) for method in (route.methods or set()) - {"HEAD"}}
        else:
            pytest.fail(f"what is {route}?")
    return found


def test_every_route_has_an_entry() -> None:
    """Threat 22: here as in the program's own table, which closes what it does not name."""
    assert all_routes() == ROUTES.keys()
    assert {path for _, path in ROUTES} | {"/sandbox"} == TABLE.keys()
    for path, route in TABLE.items():
        methods = {method for method, each in ROUTES if each == path}
        assert methods == set(route.methods) or path == "/sandbox"
        assert {
            method
            for method, each in ROUTES
            if each == path
            and ROUTES[method, path]
            == (None if route.scopes is None else {scope.value for scope in route.scopes})
        } == methods


def credentials(locked: Locked) -> dict[str, str | None]:
    """Every kind of credential, good and bad."""
    good = locked.keys["validate"]
    revoked = issue(locked.database, next(names), "admin")
    revoke_key(locked.database, revoked.key.key_id, actor=ACTOR)
    past = expired(locked.database, next(names), "admin")  # known no sooner than the revocation
    with locked.client(past) as client:  # that it has expired is told to who holds it
        known_within(lambda: "expired" in client.get("/stats").text)
    return {
        "none": None,
        "wrong": good[:-1] + ("a" if good[-1] != "a" else "b"),
        "unknown": "sma_aaaaaaaaaa_" + good[15:],
        "shorter": good[:-1],
        "longer": good + "a",
        "empty": "sma_",
        "other letters": good.upper(),
        "not ASCII": good[:-1] + "\u00e9",
        "revoked": secret_of(revoked),
        "expired": past,
        **locked.keys,
    }


@pytest.mark.parametrize("method", ["its own", "HEAD"])
def test_all_routes_times_all_credentials(locked: Locked, method: str) -> None:
    """Threats 22 and 33. Threat 22: 401 without a key in force, 403 with one of another scope.

    A page for anyone takes no key, and refuses a wrong one that is shown; probes ignore keys.
    """
    shown = credentials(locked)
    for (verb, path), scopes in ROUTES.items():
        if method == "HEAD" and verb != "GET":
            continue
        asked = verb if method == "its own" else "HEAD"
        place = PLACES.get(path, path)
        for name, key in shown.items():
            headers = {b"content-type": b"application/json"}
            if key is not None:
                headers[b"authorization"] = f"Bearer {key}".encode("latin-1")
            with locked.running.client() as client:
                answer = client.request(
                    asked, place, headers=headers, content=b"{}" if asked == "POST" else b""
                )
            case = f"{asked} {place} with {name}: {answer.status_code}"
            ignores_keys = TABLE[path].credentials is Credentials.IGNORED
            if scopes is None and (ignores_keys or key is None or name in locked.keys):
                # No certificate has the id that is asked for.
                found = {404} if path == WINDOW else {200, 307}
                assert answer.status_code in ({415, 422} if verb == "POST" else found), case
            elif name not in locked.keys:
                assert answer.status_code == 401, case
                assert answer.headers["www-authenticate"].startswith("Bearer "), case
            elif name not in (scopes or ()):
                assert answer.status_code == 403, case
                assert 'error="insufficient_scope"' in answer.headers["www-authenticate"], case
            else:
                # No request here is one that anything would be done for.
                expected = {410, 415, 422} if verb == "POST" else {200, 307, 422}
                if path.startswith(API) and "{" in path:
                    expected.add(404)
                if path in {PUBLISHED, LEGACY} and answer.status_code == 200:
                    assert answer.json()["valid"] is False
                else:
                    assert answer.status_code in expected, case
            if answer.status_code in {401, 403} and asked != "HEAD":
                problem = answer.json()
                assert problem["status"] == answer.status_code
                assert answer.headers["content-type"] == "application/problem+json"
                assert key is None or len(key) < 20 or key not in answer.text


@pytest.mark.parametrize(
    "header",
    ["sma_", "Basic c21hOnNtYQ==", "Bearer", "bearer", "Token {key}", "Bearer {key}, Bearer {key}"],
)
def test_what_is_no_bearer_key(locked: Locked, header: str) -> None:
    headers = {"Authorization": header.format(key=locked.keys["admin"])}
    with locked.running.client() as client:
        assert client.get("/stats", headers=headers).status_code == 401


def test_a_key_given_twice_or_elsewhere_does_not_count(locked: Locked) -> None:
    key = locked.keys["admin"]
    both = [("Authorization", f"Bearer {key}"), ("Authorization", f"Bearer {key}")]
    with locked.running.client() as client:
        assert client.get("/stats", headers=both).status_code == 401
        assert client.get(f"/stats?access_token={key}").status_code == 401
        assert client.get("/stats", headers={"Cookie": f"access_token={key}"}).status_code == 401
        assert client.get("/stats", headers={"authorization": f"bEARER {key}"}).status_code == 200


def test_an_unknown_path_tells_nothing_without_a_key(locked: Locked) -> None:
    with locked.client() as client:
        assert client.get("/nothing/here").status_code == 401
    with locked.client(locked.keys["admin"]) as client:
        assert client.get("/nothing/here").status_code == 404
        assert client.delete("/stats").status_code == 405


def test_who_is_not_let_in_leaves_no_trace_in_the_trail(locked: Locked) -> None:
    """Threat 27: no audit row, no device, nothing that counts against anybody."""
    before = locked.running.count("validation_history"), locked.running.count("registered_devices")
    with locked.client(locked.keys["provision"]) as client:
        camera = Camera.provisioned(client, new_serial())
    body = wire(camera.token())
    for key in (None, locked.keys["admin"], locked.keys["provision"]):
        with locked.client(key) as client:
            for path, sent in ((VALIDATE, body), (BATCH, {"tokens": [body]})):
                assert client.post(path, json=sent).status_code in {401, 403}
    after = locked.running.count("validation_history"), locked.running.count("registered_devices")
    assert after == (before[0], before[1] + 1)


def test_the_trail_names_the_key(locked: Locked) -> None:
    with locked.client(locked.keys["provision"]) as client:
        camera = Camera.provisioned(client, new_serial())
    token = camera.token()
    key = locked.keys["validate"]
    with locked.client(key) as client:
        answer = client.post(VALIDATE, json=wire(token))
    assert answer.json()["validation_result"] == "PASS"
    rows = locked.running.rows(
        "SELECT caller FROM validation_history WHERE encrypted_nuc_hash = ?",
        token.encrypted_nuc_hash,
    )
    assert rows == [(key[4:14],)]


# --- a key's terms


@pytest.mark.parametrize("workers", [1, 2])
def test_a_revocation_counts_within_a_second(
    tmp_path: Path, postgres_url: str, workers: int
) -> None:
    """On every process: each connection may meet another one."""
    running, keys = start_with_keys(
        tmp_path / "data", postgres_url, "--workers", str(workers), SMA_TABLES="5"
    )
    with running.server, running.database() as database:

        def status() -> int:
            with running.client(headers=bearer(keys["admin"])) as client:
                return client.get("/stats").status_code

        assert {status() for _ in range(10 * workers)} == {200}
        revoke_key(database, "a admin", actor=ACTOR)
        time.sleep(SEEN_SECONDS)
        assert {status() for _ in range(20 * workers)} == {401}


def test_a_rotated_key(locked: Locked) -> None:
    """The new secret counts at once; the old one as long as it was given, and no longer."""
    issued = issue(locked.database, next(names), "admin")
    first = secret_of(issued)
    second = secret_of(
        rotate_key(locked.database, issued.key.name, timedelta(hours=1), actor=ACTOR)
    )
    with locked.client(first) as old, locked.client(second) as new:
        known_within(lambda: new.get("/stats").status_code == 200)
        assert old.get("/stats").status_code == 200
        third = secret_of(rotate_key(locked.database, issued.key.name, timedelta(0), actor=ACTOR))
        known_within(lambda: new.get("/stats").status_code == 401)
        assert old.get("/stats").status_code == 401
    with locked.client(third) as newest:
        assert newest.get("/stats").status_code == 200
        rotate_key(locked.database, issued.key.name, timedelta(seconds=1), actor=ACTOR)
        time.sleep(2.5)
        assert newest.get("/stats").status_code == 401


@pytest.mark.parametrize("disclosure", ["serial", "family", "none"])
def test_a_keys_own_disclosure(locked: Locked, disclosure: str) -> None:
    """Threat 20: one, many, and never on FAIL."""
    with locked.client(locked.keys["provision"]) as client:
        camera = Camera.provisioned(client, new_serial())
    told = {
        "serial": ("Test", camera.serial),
        "family": ("Test", None),
        "none": (None, None),
    }[disclosure]
    with locked.client(locked.issue("validate", disclosure=disclosure)) as client:
        one = client.post(VALIDATE, json=wire(camera.token())).json()
        many = client.post(BATCH, json={"tokens": [wire(camera.token())]}).json()["results"][0]
        for verdict in (one, many):
            assert verdict["validation_result"] == "PASS"
            assert (verdict["device_family"], verdict["device_serial"]) == told
        forged = wire(camera.token()) | {"nonce": "00" * 12}
        failed = client.post(VALIDATE, json=forged).json()
        assert (failed["device_family"], failed["device_serial"]) == (None, None)


def test_an_enrolment_key_is_good_for_so_many_devices(locked: Locked) -> None:
    """Whoever comes first, however many come at once; what fails otherwise uses nothing up."""
    key = locked.issue("provision", uses_allowed=5)
    registered = new_serial()
    with locked.client(locked.keys["provision"]) as client:
        Camera.provisioned(client, registered)

    def provision(serial: str) -> int:
        with locked.client(key) as client:
            return client.post(PROVISION, json=provision_body(serial)).status_code

    serials = [new_serial() for _ in range(20)]
    with ThreadPoolExecutor(20) as threads:
        statuses = list(threads.map(provision, [registered, *serials, registered]))
    assert (statuses[0], statuses[-1]) == (409, 409)
    assert sorted(statuses[1:-1]) == [200] * 5 + [403] * 15
    assert provision(registered) == 409
    assert provision(new_serial()) == 403
    rows = locked.running.rows("SELECT uses FROM access_keys WHERE key_id = ?", key[4:14])
    assert rows == [(5,)]


def test_a_lost_answer_can_be_had_again_when_the_key_is_used_up(locked: Locked) -> None:
    """Threat 8: and by nobody else, though they know the Idempotency-Key and the request."""
    key, other = locked.issue("provision", uses_allowed=1), locked.issue("provision")
    body = provision_body(new_serial())
    headers = {"Idempotency-Key": "first-start"}
    with locked.client(key) as client:
        first = client.post(PROVISION, json=body, headers=headers)
        assert first.status_code == 200
        assert client.post(PROVISION, json=body, headers=headers).json() == first.json()
        refused = client.post(PROVISION, json=provision_body(new_serial()), headers=headers)
        assert refused.status_code == 422
        assert client.post(PROVISION, json=provision_body(new_serial())).status_code == 403
    with locked.client(other) as client:
        answer = client.post(PROVISION, json=body, headers=headers)
        assert answer.status_code == 409
        assert "table_keys" not in answer.json()


@pytest.mark.parametrize("end", ["revoked", "expired"])
def test_a_lost_answer_can_be_had_again_when_the_key_has_lapsed(locked: Locked, end: str) -> None:
    """Threat 8: under another key, once that of the first request is in force no more.

    Only the very same request under the same Idempotency-Key; and only with a key that would have
    allowed it.
    """
    key, other = locked.issue("provision"), locked.issue("provision", uses_allowed=1)
    body, headers = provision_body(new_serial()), {"Idempotency-Key": f"first-start-{end}"}
    with locked.client(key) as client:
        first = client.post(PROVISION, json=body, headers=headers).json()
    with locked.client(other) as client:
        assert client.post(PROVISION, json=body, headers=headers).status_code == 409
        if end == "revoked":
            revoke_key(locked.database, key[4:14], actor=ACTOR)
        else:
            with locked.database.write() as transaction:
                # A second ago, because the authority goes by the clock of the database.
                past = datetime.now(UTC) - timedelta(seconds=1)
                change_key(transaction, key[4:14], expires_at=past)
        assert client.post(PROVISION, json=body, headers=headers).json() == first
        assert client.post(PROVISION, json=body).status_code == 409
        assert (
            client.post(PROVISION, json=body, headers={"Idempotency-Key": "x"}).status_code == 409
        )
        changed = provision_body(body["device_serial"])
        assert client.post(PROVISION, json=changed, headers=headers).status_code == 409
        assert client.post(PROVISION, json=provision_body(new_serial())).status_code == 200
    with locked.client(locked.issue("provision", device_family="Other")) as client:
        assert client.post(PROVISION, json=body, headers=headers).status_code == 409


class LostAnswers(httpx2.HTTPTransport):
    """The way to a server on which every answer gets lost."""

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        assert super().handle_request(request).status_code == 200
        raise httpx2.ReadError("Connection reset by peer", request=request)


def test_a_camera_whose_enrolment_key_was_revoked_meanwhile(locked: Locked, tmp_path: Path) -> None:
    """Threat 8: its answer was lost; with another key it goes on where it was, and its tokens pass.

    The operator need do nothing but give it a key.
    """
    serial, old, new = new_serial(), locked.issue("provision"), locked.issue("provision")
    place = tmp_path / "camera"

    def enrolment(key: str) -> Enrolment:
        return Enrolment(locked.running.server.url, serial, "Test", enrolment_key=key, patience=0)

    with httpx2.Client(transport=LostAnswers()) as client, pytest.raises(AuthorityAwayError):
        start_camera(place, sealing=UNSEALED, enrolment=enrolment(old), client=client)
    revoke_key(locked.database, old[4:14], actor=ACTOR)
    with locked.client(old) as client:
        known_within(lambda: client.get("/health").status_code == 401)
    with pytest.raises(ProvisioningRefusedError, match="401"):
        start_camera(place, sealing=UNSEALED, enrolment=enrolment(old))
    with (
        start_camera(place, sealing=UNSEALED, enrolment=enrolment(new)) as camera,
        locked.client(locked.keys["validate"]) as client,
    ):
        token = wire(camera.capture(b"a picture").content.camera_token)
        assert client.post(VALIDATE, json=token).json()["validation_result"] == "PASS"


def test_a_key_that_lapsed_long_ago_gives_nothing_back(locked: Locked) -> None:
    """Threat 8: an answer is there for 24 hours, and so are the keys that it was given under."""
    key, other = locked.issue("provision"), locked.issue("provision")
    body, headers = provision_body(new_serial()), {"Idempotency-Key": "long-ago"}
    with locked.client(key) as client:
        assert client.post(PROVISION, json=body, headers=headers).status_code == 200
    with locked.database.write() as transaction:
        change_key(transaction, key[4:14], revoked_at=datetime.now(UTC) - timedelta(hours=25))
    # SQLite's clock is the machine's, by which nothing ends before it has been right for an hour.
    status = 200 if locked.running.uses_sqlite else 409
    with locked.client(other) as client:
        assert client.post(PROVISION, json=body, headers=headers).status_code == status


def test_repeats_of_a_refused_request_are_refused_at_once(locked: Locked) -> None:
    """All in one batch or not, none of them gets the certificate that was not registered."""
    key = locked.issue("provision", uses_allowed=1)
    bodies = [provision_body(new_serial()) for _ in range(4)]

    def provision(body: dict[str, Any]) -> tuple[int, str]:
        headers = {"Idempotency-Key": body["device_serial"]}
        with locked.client(key) as client:
            answer = client.post(PROVISION, json=body, headers=headers)
        return answer.status_code, answer.json().get("provisioning_id", "")

    with ThreadPoolExecutor(16) as threads:
        answers = list(threads.map(provision, bodies * 4))
    granted = {answer for answer in answers if answer[0] == 200}
    assert len(granted) == 1
    assert {status for status, _ in answers} == {200, 403}
    assert [status for status, _ in answers].count(200) == 4


def test_an_enrolment_key_for_one_family(locked: Locked) -> None:
    key = locked.issue("provision", device_family="Android")
    with locked.client(key) as client:
        refused = client.post(PROVISION, json=provision_body(new_serial()))
        assert refused.status_code == 403
        assert "Android" in refused.json()["detail"]
        body = provision_body(new_serial(), device_family="Android")
        assert client.post(PROVISION, json=body).status_code == 200


def test_when_a_key_was_last_used_is_written_down(tmp_path: Path) -> None:
    """A little later, or when the server stops."""
    running, keys = start_with_keys(tmp_path / "data", "sqlite:", SMA_TABLES="5")
    with running.server:
        with running.client(headers=bearer(keys["admin"])) as client:
            assert client.get("/stats").status_code == 200
            assert client.post(VALIDATE, json={}).status_code == 403
        assert running.server.terminate() == 0
    used = "SELECT scope FROM access_keys WHERE last_used_at IS NOT NULL"
    assert running.rows(used) == [("admin",)]


def test_a_connection_may_outlive_a_certificate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TLS looks at the end of a certificate when a connection begins, which may last for days."""
    client = TestCa(tmp_path / "ca").issue("newsroom")
    with new_authority(small_settings(tmp_path, None, access=Access.KEYS)) as authority:
        create_key(
            authority.database,
            KeyTerms(
                "newsroom",
                KeyScope.VALIDATE,
                certificate_fingerprint=client.certificate.fingerprint(SHA256()),
            ),
            actor=ACTOR,
        )
        with authority.database.read() as connection:
            authenticator = Authenticator(authority.settings, AccessKeyCache(connection))
        tls = {"client_cert_der": client.certificate.public_bytes(Encoding.DER)}
        request = make_context(VALIDATE, "POST", tls=tls)
        assert authenticator.authenticate(request).key is not None
        end = client.certificate.not_valid_after_utc.timestamp()
        monkeypatch.setattr(time, "time", lambda: end + 1)
        with pytest.raises(UnauthenticatedError, match="expired"):
            authenticator.authenticate(request)


def test_an_act_needs_a_key_on_an_open_server(tmp_path: Path) -> None:
    """Threat 22: access that is open lets everybody read, and change nothing."""
    suspend = make_context(f"{API}/devices/camera/suspend", "POST")
    other = make_context(f"{API}/devices", "GET")
    with new_authority(small_settings(tmp_path, None, access=Access.OPEN)) as authority:
        with authority.database.read() as connection:
            authenticator = Authenticator(authority.settings, AccessKeyCache(connection))
        assert authenticator.authenticate(other).key is None
        with pytest.raises(UnauthenticatedError):
            authenticator.authenticate(suspend)


def test_certificates_for_everybody(tmp_path: Path) -> None:
    """Verifiers have no keys: what certificates point at can be published, and nothing else is."""
    running, _ = start_with_keys(tmp_path / "data", "sqlite:", "--publish-pki", SMA_TABLES="5")
    with running.server, running.client() as client:
        for name in ("root.crt", "root.crl", "intermediate.crt", "intermediate.crl"):
            assert client.get(f"/pki/{name}").status_code == 200
        for path in ("/pki/", "/pki/root.key", "/stats", "/docs", "//pki/root.crt"):
            assert client.get(path).status_code == 401


def test_health_tells_a_stranger_its_status_alone(locked: Locked) -> None:
    """Neither the version nor how many devices there are. Any key gets the rest."""
    with locked.client() as client:
        answer = client.get("/health")
        assert (answer.status_code, answer.json()) == (200, {"status": "healthy"})
    with locked.client("sma_wrong") as client:
        assert client.get("/health").status_code == 401
    for key in locked.keys.values():
        with locked.client(key) as client:
            assert {"version", "devices_registered"} <= client.get("/health").json().keys()


# --- open access on this machine: pages of other sites


@pytest.mark.parametrize(
    "host", ["rebound.example.org", "rebound.example.org:80", "1.2.3.4.nip.io"]
)
def test_a_rebound_name_is_not_answered(running_on_sqlite: Running, host: str) -> None:
    """A page whose name was made to resolve to 127.0.0.1 cannot ask an open authority."""
    with running_on_sqlite.client() as client:
        for method, path in (("GET", "/stats"), ("POST", VALIDATE), ("POST", PROVISION)):
            answer = client.request(method, path, headers={"Host": host}, json={})
            assert answer.status_code == 421
            assert answer.json()["type"] == "urn:birthmark:problem:misdirected-request"


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1", "[::1]:8000", "sma"])
def test_names_of_this_machine_are_answered(running_on_sqlite: Running, host: str) -> None:
    with running_on_sqlite.client() as client:
        assert client.get("/health", headers={"Host": host}).status_code == 200


def test_the_name_in_public_url_is_answered(tmp_path: Path) -> None:
    url = "https://sma.example.org"
    running = start(tmp_path / "data", "sqlite:", "--public-url", url, SMA_TABLES="5")
    with running.server, running.client() as client:
        assert client.get("/health", headers={"Host": "sma.example.org"}).status_code == 200
        assert client.get("/health", headers={"Host": "other.example.org"}).status_code == 421


def test_callers_are_told_apart() -> None:
    assert Caller("192.0.2.7").identity == "ip:192.0.2.7"
    assert Caller(None).identity == "local"


# --- whatever is sent, with whichever key


@pytest.mark.parametrize("operation", sorted(key for key in ROUTES if key[1] in DOCUMENTED))
def test_no_key_opens_more_than_its_scope(locked: Locked, operation: tuple[str, str]) -> None:
    """Threats 21 and 22: no 5xx, nothing undocumented, and never an answer beyond the scope."""
    method, path = operation
    scopes = ROUTES[operation]
    keys = {**locked.keys, "none": None, "wrong": locked.keys["admin"][:-1] + "\u00e9"}
    with locked.client(locked.keys["admin"]) as client:
        document = client.get("/openapi.json").json()
    schema = schemathesis.openapi.from_dict(document)
    schema.config.update(base_url=locked.running.server.url)

    @settings(
        max_examples=40 if method == "POST" else 6,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=schema[path][method].as_strategy(), name=st.sampled_from(sorted(keys)))
    def send(case: Case[Any], name: str) -> None:
        key = keys[name]
        headers = {"Authorization": "" if key is None else f"Bearer {key}".encode("latin-1")}
        response = case.call(headers=headers, timeout=30)
        assert response.status_code < 500
        if name not in locked.keys:  # an empty credential is a wrong one, where none is needed too
            assert response.status_code == 401
        elif scopes is not None and name not in scopes:
            assert response.status_code == 403
        else:
            assert response.status_code not in {401, 403}
        case.validate_response(response, checks=[status_code_conformance, content_type_conformance])

    send()
