"""A credential that is shown is checked, also on a server that asks for none."""

import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx2
import pytest
from cryptography.hazmat.primitives.hashes import SHA256

from birthmark_sma.authority.access.keys import KeyTerms, create_key, revoke_key
from birthmark_sma.authority.access.store import KeyScope
from birthmark_sma.storage.engine import Database
from tests.integration.web.dashboard.conftest import PAGE
from tests.support.access_keys import (
    bearer,
    expired,
    issue,
    secret_of,
    start_with_keys,
)
from tests.support.cameras.camera import PROVISION, VALIDATE, Camera, wire
from tests.support.databases.postgres import create_database, drop_database
from tests.support.devices.actors import ACTOR
from tests.support.http.tls import TestCa
from tests.support.problems import assert_problem
from tests.support.programs.running import Running, new_serial, start, wait_until

BATCH = f"{VALIDATE}/batch"
WRONG = "sma_" + "a" * 63
PUBLIC = ("/health/live", "/health/ready", "/pki/root.crt", "/pki/intermediate.crl")


class Open(NamedTuple):
    """A server on loopback that asks for no key, a key of each scope, and its database."""

    running: Running
    keys: dict[str, str]
    database: Database

    def client(self, key: str | None = None) -> httpx2.Client:
        return self.running.client(headers={} if key is None else bearer(key))


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def opened(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Open]:
    directory: Path = tmp_path_factory.mktemp("open")
    if request.param == "sqlite":
        url, dropped = "sqlite:", None
    else:
        admin_url = request.getfixturevalue("postgres_admin_url")
        dropped = f"open_{secrets.token_hex(8)}"
        url = create_database(admin_url, dropped)
    running = start(directory / "data", url, "--rate-guesses", "1000/hour")
    with running.database() as database:
        keys = {scope.value: secret_of(issue(database, scope.value, scope)) for scope in KeyScope}
        with running.client(headers=bearer(keys["admin"])) as client:
            wait_until(lambda: client.get("/health").status_code == 200, 10)
        yield Open(running, keys, database)
    running.server.close()
    if dropped is not None:
        drop_database(admin_url, dropped)


def test_a_wrong_key_is_401_everywhere_but_on_public_routes(opened: Open) -> None:
    """Threat 33: what works on a laptop works where keys are required, and what does not fails."""
    with opened.client(WRONG) as client:
        for path in ("/", "/health", "/stats", "/docs", "/dashboard", "/dashboard/sign-in", "/x"):
            problem = assert_problem(client.get(path), 401)
            assert problem["detail"] == "This access key is not known here."
        for path in (VALIDATE, BATCH, "/validate", PROVISION):
            assert_problem(client.post(path, json={}), 401)
        for path in PUBLIC:
            assert client.get(path).status_code == 200
    for shown in ("", "Bearer", "Basic c21hOnNtYQ==", f"Bearer {WRONG}, Bearer {WRONG}"):
        with opened.running.client(headers={"Authorization": shown}) as client:
            assert client.get("/stats").status_code == 401, shown
    with opened.client() as client:
        assert client.get("/stats").status_code == 200, "nobody needs a key"


def test_a_scope_counts(opened: Open) -> None:
    """Threat 33."""
    allowed = {VALIDATE: "validate", BATCH: "validate", "/validate": "validate"}
    allowed[PROVISION] = "provision"
    for scope, key in opened.keys.items():
        with opened.client(key) as client:
            for path, wanted in allowed.items():
                status = client.post(path, json={}).status_code
                malformed = 200 if path == "/validate" else 422
                assert status == (malformed if scope == wanted else 403), (path, scope)
            closed = scope in {"provision", "validate"}
            assert client.get("/stats").status_code == (403 if closed else 200)
            assert client.get("/health").status_code == 200
            assert client.get("/x").status_code == 404


def test_a_revoked_and_an_expired_key_are_401(opened: Open) -> None:
    """Threat 33: within a second, as where keys are required."""
    revoked = issue(opened.database, "revoked", "validate")
    past = expired(opened.database, "past", "validate")
    with opened.client(secret_of(revoked)) as client:
        wait_until(lambda: client.post(VALIDATE, json={}).status_code == 422, 10)
        revoke_key(opened.database, revoked.key.key_id, actor=ACTOR)
        wait_until(lambda: client.post(VALIDATE, json={}).status_code == 401, 10)
        assert client.get("/health/live").status_code == 200
    with opened.client(past) as client:
        wait_until(lambda: "expired" in client.post(VALIDATE, json={}).text, 10)


def test_disclosure_and_caller_are_those_of_the_key(opened: Open) -> None:
    """Threats 20 and 33: and two aggregation servers on one machine are no replay."""
    with opened.client() as client:
        camera = Camera.provisioned(client, new_serial())
    silent = secret_of(issue(opened.database, "silent", "validate", disclosure="none"))
    token = camera.token()
    with opened.client(silent) as client:
        wait_until(lambda: client.post(VALIDATE, json={}).status_code == 422, 10)
        answer = client.post(VALIDATE, json=wire(token)).json()
    assert (answer["validation_result"], answer["device_serial"]) == ("PASS", None)
    for key in (opened.keys["validate"], None):
        with opened.client(key) as client:
            answer = client.post(VALIDATE, json=wire(token)).json()
        assert answer["device_serial"] == camera.serial
    rows = opened.running.rows(
        "SELECT caller, repeat FROM validation_history WHERE encrypted_nuc_hash = ? ORDER BY id",
        token.encrypted_nuc_hash,
    )
    callers, repeats = zip(*rows, strict=True)
    assert callers == (silent[4:14], opened.keys["validate"][4:14], None)
    assert "replayed" not in repeats


def test_the_limit_is_the_keys_own(opened: Open) -> None:
    """Threat 33."""
    slow = secret_of(issue(opened.database, "slow", "validate", rate_limit="2/hour"))
    with opened.client(slow) as client:
        wait_until(lambda: client.get("/health").status_code == 200, 10)
        statuses = [client.post(VALIDATE, json={}).status_code for _ in range(4)]
    assert statuses == [422, 422, 429, 429]


def test_guesses_are_counted(tmp_path: Path) -> None:
    """Threats 23 and 33: 429 in place of 401; a good key and no key are served all the same."""
    running = start(tmp_path / "data", "sqlite:", "--rate-guesses", "3/hour", SMA_TABLES="5")
    with running.server, running.client() as client:
        answers = [client.get("/stats", headers=bearer(WRONG)).status_code for _ in range(5)]
        assert answers == [401, 401, 401, 429, 429]
        assert client.get("/stats").status_code == 200


def test_a_session_that_is_over(opened: Open) -> None:
    """Threat 33: its cookie is a wrong credential, and a browser gets rid of it by itself."""
    cookie = {"sma-session": "A" * 43}
    with opened.running.client(cookies=cookie) as program:
        assert_problem(program.get("/dashboard"), 401)
        assert program.get("/stats").status_code == 200, "it is for the dashboard alone"
    with opened.running.client(headers=PAGE) as browser:
        browser.cookies.set("sma-session", "A" * 43, domain="127.0.0.1")
        page = browser.get("/dashboard", follow_redirects=True)
        assert page.status_code == 200
        assert str(page.url).endswith("/dashboard")
        assert "sma-session" not in browser.cookies
        assert len(page.history) == 2


def test_a_client_certificate_of_no_key_or_a_revoked_one(tmp_path: Path) -> None:
    """Threat 33: TLS verified it, and where keys are required it would be refused."""
    ca = TestCa(tmp_path / "ca")
    known, unknown = (ca.issue(name) for name in ("newsroom", "nobody"))
    environ: dict[str, Any] = ca.issue("localhost").settings
    running = start(
        tmp_path / "data",
        "sqlite:",
        "--tls-client-ca",
        str(ca.file),
        **environ,
        SMA_TABLES="5",
    )

    def status(shown: Any, path: str = "/stats") -> int:
        with httpx2.Client(
            base_url=running.server.url, verify=ca.client_context(shown), trust_env=False
        ) as client:
            return client.get(path).status_code

    with running.server, running.database() as database:
        terms = KeyTerms(
            "newsroom",
            KeyScope.ADMIN,
            certificate_fingerprint=known.certificate.fingerprint(SHA256()),
        )
        key = create_key(database, terms, actor=ACTOR).key
        wait_until(lambda: status(known) == 200, 10)
        assert status(None) == 200
        assert status(unknown) == 401
        assert status(unknown, "/health/live") == 200
        assert status(unknown, "/") == 307
        revoke_key(database, key.key_id, actor=ACTOR)
        wait_until(lambda: status(known) == 401, 10)


def test_what_is_published_where_a_public_url_is_known(tmp_path: Path) -> None:
    """Certificates point there: verifiers have no keys, and a wrong key changes nothing."""
    running, _ = start_with_keys(
        tmp_path / "data", "sqlite:", "--public-url", "https://sma.example", SMA_TABLES="5"
    )
    with running.server, running.client() as client:
        for path in ("/pki/root.crt", "/pki/intermediate.crt", "/pki/intermediate.crl"):
            assert client.get(path).status_code == 200
            assert client.get(path, headers=bearer(WRONG)).status_code == 200
        assert client.get("/docs").status_code == 401
