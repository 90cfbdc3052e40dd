"""Random keys, scopes, revocations and restarts: never a 5xx, never beyond a key's scope.

A Hypothesis state machine drives a real server on each kind of database. It keeps its own account
of what each key may do, and holds every answer against it.
"""

from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import httpx2
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from birthmark_sma.authority.access.keys import KeyTerms, create_key, revoke_key, rotate_key
from birthmark_sma.authority.access.store import KeyScope
from birthmark_sma.storage.engine import Database, open_database
from tests.support.access_keys import UNLIMITED, secret_of, start_with_keys
from tests.support.cameras.camera import PROVISION, VALIDATE, Camera, provision_body, wire
from tests.support.devices.actors import ACTOR
from tests.support.programs.running import Running, new_serial, start, wait_until
from tests.support.soak import times

ROLES = {"monitor", "read", "operate", "admin"}
PATHS: dict[tuple[str, str], set[str]] = {
    ("POST", PROVISION): {"provision"},
    ("POST", VALIDATE): {"validate"},
    ("POST", f"{VALIDATE}/batch"): {"validate"},
    ("GET", "/stats"): ROLES,
    ("GET", "/health"): {"provision", "validate", *ROLES},
    ("GET", "/pki/root.crt"): {"provision", "validate", *ROLES},
    ("GET", "/no/such/path"): {"provision", "validate", *ROLES},
}
EXAMPLES, STEPS = times(1, 30), 15
ASKED_AT_LEAST = 5


class Account:
    """What the machine knows of one key."""

    def __init__(self, secret: str, terms: KeyTerms) -> None:
        self.secret = secret
        self.terms = terms
        self.revoked = False
        self.retired: set[str] = set()
        self.provisioned = 0

    def expired(self) -> bool:
        """Return whether the key has expired."""
        expires = self.terms.expires_at
        return expires is not None and expires <= datetime.now(UTC)


class Doors(RuleBasedStateMachine):
    """The server is started once and outlives the examples; each of them makes keys of its own."""

    running: ClassVar[Running]
    database: ClassVar[Database]
    asked: ClassVar[int] = 0
    accounts = Bundle("accounts")

    def __init__(self) -> None:
        super().__init__()
        self.unseen: list[Account] = []
        self.camera: Camera | None = None
        self.all_accounts: list[Account] = []
        self.turn = 0

    @initialize(target=accounts)
    def first_key(self) -> Account:
        return self.new_account("provision", None, None, None)

    @rule(
        target=accounts,
        scope=st.sampled_from([scope.value for scope in KeyScope]),
        seconds=st.sampled_from([None, None, 1, 3600]),
        uses=st.sampled_from([None, 1, 2]),
        disclosure=st.sampled_from([None, "serial", "family", "none"]),
    )
    def create(
        self, scope: str, seconds: int | None, uses: int | None, disclosure: str | None
    ) -> Account:
        return self.new_account(scope, seconds, uses, disclosure)

    def new_account(
        self, scope: str, seconds: int | None, uses: int | None, disclosure: str | None
    ) -> Account:
        terms = KeyTerms(
            new_serial("key"),
            KeyScope(scope),
            expires_at=None if seconds is None else datetime.now(UTC) + timedelta(seconds=seconds),
            uses_allowed=uses if scope == "provision" else None,
            disclosure=disclosure if scope == "validate" else None,
        )
        account = Account(secret_of(create_key(self.database, terms, actor=ACTOR)), terms)
        self.all_accounts.append(account)
        self.unseen.append(account)
        return account

    @rule(account=accounts)
    def revoke(self, account: Account) -> None:
        if not account.revoked:
            revoke_key(self.database, account.terms.name, actor=ACTOR)
            account.revoked = True
            self.unseen.append(account)

    @rule(account=accounts)
    def rotate(self, account: Account) -> None:
        if not account.revoked:
            account.retired.add(account.secret)
            issued = rotate_key(self.database, account.terms.name, timedelta(0), actor=ACTOR)
            account.secret = secret_of(issued)
            self.unseen.append(account)

    @rule(how=st.sampled_from(["SIGTERM", "SIGKILL"]))
    def restart(self, how: str) -> None:
        server = self.running.server
        if how == "SIGTERM":
            assert server.terminate() == 0
        else:
            server.kill()
        server.close()
        url = self.running.database_url
        url = "sqlite:" if url.startswith("sqlite:") else url
        type(self).running = start(server.data_dir, url, "--access", "keys", *UNLIMITED)

    @rule(
        account=accounts,
        paths=st.lists(st.sampled_from(sorted(PATHS)), min_size=3, max_size=8),
        old=st.booleans(),
    )
    def call(self, account: Account, paths: list[tuple[str, str]], *, old: bool) -> None:
        self.wait_until_seen()
        secret = account.secret
        if old and account.retired:
            secret = sorted(account.retired)[0]
        for path in paths:
            self.call_once(account, path, secret)

    def call_once(self, account: Account, path: tuple[str, str], secret: str) -> None:
        was_expired = account.expired()
        answer = self.ask(path, secret)
        if account.revoked or secret in account.retired or was_expired:
            assert answer.status_code == 401
        elif account.expired():
            pass  # it ended while the server decided
        elif account.terms.scope.value not in PATHS[path]:
            assert answer.status_code == 403
        else:
            self.check_allowed(account, path, answer)

    @rule(path=st.sampled_from(sorted(PATHS)), garbage=st.text(max_size=80))
    def guess(self, path: tuple[str, str], garbage: str) -> None:
        with suppress(httpx2.LocalProtocolError):
            answer = self.ask(path, garbage)
            assert answer.status_code in {400, 401}  # a control character is no HTTP

    @invariant()
    def one_of_them_keeps_to_its_scope(self) -> None:
        """After each step ask something with the next key: examples may do without some rules."""
        if self.all_accounts:
            self.wait_until_seen()
            self.turn += 1
            account = self.all_accounts[self.turn % len(self.all_accounts)]
            self.call_once(account, sorted(PATHS)[self.turn % len(PATHS)], account.secret)

    def check_allowed(
        self, account: Account, path: tuple[str, str], answer: httpx2.Response
    ) -> None:
        """Hold the answer of a key in force against its terms."""
        if path == ("GET", "/no/such/path"):
            assert answer.status_code == 404
            return
        uses = account.terms.uses_allowed
        if path[1] == PROVISION and uses is not None and account.provisioned >= uses:
            assert answer.status_code == 403
            return
        assert answer.status_code == 200
        if path[1] == PROVISION:
            account.provisioned += 1
            self.camera = Camera.of(self.serial, answer.json())
        if path[1].startswith(VALIDATE):
            verdict = answer.json().get("results", [answer.json()])[0]
            if account.terms.disclosure in {"family", "none"}:
                assert verdict["device_serial"] is None
            if account.terms.disclosure == "none":
                assert verdict["device_family"] is None
            if self.camera is not None:
                assert verdict["validation_result"] == "PASS"

    def ask(self, path: tuple[str, str], secret: str) -> httpx2.Response:
        """Send what is well formed, so that nothing but the key decides."""
        method, place = path
        body: dict[str, Any] | None = None
        if place == PROVISION:
            self.serial = new_serial()
            body = provision_body(self.serial)
        elif place.startswith(VALIDATE):
            nonsense = {"encrypted_nuc_hash": "ab" * 48, "table_id": 0, "key_index": 0}
            token = nonsense | {"nonce": "cd" * 12}
            if self.camera is not None:
                token = wire(self.camera.token())
            body = {"tokens": [token]} if place.endswith("batch") else token
        answer = self.send(method, place, secret, body)
        assert answer.status_code < 500, answer.text
        assert secret == "" or len(secret) < 60 or secret not in answer.text
        type(self).asked += 1
        return answer

    def send(
        self, method: str, place: str, secret: str, body: dict[str, Any] | None = None
    ) -> httpx2.Response:
        shown = {b"authorization": b"Bearer " + secret.encode("utf-8", "replace")}
        with self.running.client(headers=shown) as client:
            return client.request(method, place, json=body)

    def wait_until_seen(self) -> None:
        """Wait until the server has read all changes, which it does twice a second."""
        for account in self.unseen:
            wait_until(partial(self.has_seen, account), 20)
        self.unseen.clear()

    def has_seen(self, account: Account) -> bool:
        """Return whether the server knows the key's secrets as they are now."""
        known = self.send("GET", "/health", account.secret).status_code != 401
        left = [self.send("GET", "/health", each).status_code for each in account.retired]
        return known is not (account.revoked or account.expired()) and {*left} <= {401}


@pytest.fixture(params=["sqlite", "postgresql"])
def started(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[None]:
    """A server that asks for keys, for the machine to drive."""
    url = "sqlite:" if request.param == "sqlite" else request.getfixturevalue("postgres_url")
    Doors.running, _ = start_with_keys(tmp_path / "data", url, SMA_TABLES="10")
    Doors.database = open_database(Doors.running.database_url)
    Doors.asked = 0
    yield
    Doors.database.close()
    Doors.running.server.close()


@pytest.mark.usefixtures("started")
@pytest.mark.soak
def test_never_a_5xx_and_never_beyond_the_scope() -> None:
    """Threats 20, 22 and 27, through restarts and kills."""
    bounded = settings(
        max_examples=EXAMPLES,
        stateful_step_count=STEPS,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(Doors, settings=bounded)
    assert Doors.asked >= ASKED_AT_LEAST
