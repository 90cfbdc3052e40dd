"""Random operators: no 5xx, nothing beyond a role, and nothing without an act.

A model has the status of each device, the living keys and the number of acts. Each step is a
request with a random scope. After it, server and model must agree.
"""

from typing import Any, ClassVar

import httpx2
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)
from schemathesis import Case
from schemathesis.specs.openapi.checks import content_type_conformance, status_code_conformance

from tests.integration.web.api.administration.conftest import API, Administered
from tests.support.programs.running import new_serial
from tests.support.soak import times

SCOPES = ("provision", "validate", "monitor", "read", "operate", "admin")
RANK = {"monitor": 1, "read": 2, "operate": 3, "admin": 4}
ALLOWED = {
    "suspend": {"active": "suspended", "suspended": "suspended"},
    "reinstate": {"suspended": "active", "active": "active"},
    "retire": {"active": "retired", "suspended": "retired", "retired": "retired"},
    "revoke": dict.fromkeys(("active", "suspended", "retired", "revoked"), "revoked"),
}
"""For each act the statuses that allow it, and the status after it."""
DEVICES = 3
scopes = st.sampled_from(SCOPES)
devices = st.integers(0, DEVICES - 1)


class Operators(RuleBasedStateMachine):
    """The server outlives the examples; each example has devices and keys of its own."""

    server: ClassVar[Administered]
    requests: ClassVar[int] = 0

    @initialize()
    def begin(self) -> None:
        self.serials = [self.server.provision() for _ in range(DEVICES)]
        self.status = dict.fromkeys(self.serials, "active")
        self.allowed: set[str] = set()
        self.living: dict[str, str] = {}
        self.once: dict[str, tuple[str, str, dict[str, Any], Any]] = {}
        self.acts = self.server.count_acts()

    def send(
        self, scope: str, least: str, path: str, body: dict[str, Any], **headers: str
    ) -> httpx2.Response:
        """Send a POST. Below the least role it is 403."""
        type(self).requests += 1
        answer = self.server.ask(scope, "POST", path, json=body, headers=headers)
        assert answer.status_code < 500, answer.text
        assert (answer.status_code == 403) == (RANK.get(scope, 0) < RANK[least])
        return answer

    @rule(scope=scopes, device=devices, act=st.sampled_from(sorted(ALLOWED)), keyed=st.booleans())
    def act(self, scope: str, device: int, act: str, *, keyed: bool) -> None:
        serial = self.serials[device]
        path, once = f"/devices/{serial}/{act}", new_serial()
        headers = {"Idempotency-Key": once} if keyed else {}
        answer = self.send(scope, "operate", path, {}, **headers)
        if answer.status_code == 403:
            return
        after = ALLOWED[act].get(self.status[serial])
        assert answer.status_code == (409 if after is None else 200)
        if after is not None:
            self.acts += after != self.status[serial]
            self.status[serial] = after
            if keyed:
                self.once[once] = (scope, path, {}, answer.json())

    @rule(scope=scopes, act=st.sampled_from(sorted(ALLOWED)), preview=st.booleans())
    def act_on_all(self, scope: str, act: str, *, preview: bool) -> None:
        body = {"act": act, "device_serials": self.serials, "preview": preview}
        answer = self.send(scope, "operate", "/devices/bulk", body)
        if answer.status_code == 403:
            return
        after = {each: ALLOWED[act].get(self.status[each]) for each in self.serials}
        if preview:
            told = answer.json()
            assert told["refused"] == sorted(each for each in after if after[each] is None)
            return
        assert answer.status_code == (409 if None in after.values() else 200)
        if answer.status_code == 200:
            self.acts += after != self.status
            self.status = {serial: str(status) for serial, status in after.items()}

    @rule(scope=scopes, device=devices, cancel=st.booleans())
    def re_enrol(self, scope: str, device: int, *, cancel: bool) -> None:
        serial = self.serials[device]
        path = f"/devices/{serial}/re-enrol"
        answer = self.send(scope, "operate", path, {"cancel": cancel})
        if answer.status_code == 403:
            return
        if cancel:
            assert answer.status_code == 200
            self.acts += serial in self.allowed
            self.allowed.discard(serial)
        elif self.status[serial] == "active":
            assert answer.status_code == 200
            self.acts += 1
            self.allowed.add(serial)
        else:
            assert answer.status_code == 409

    @rule(scope=scopes, of=scopes, keyed=st.booleans())
    def create_key(self, scope: str, of: str, *, keyed: bool) -> None:
        body, once = {"name": new_serial("key"), "scope": of}, new_serial()
        headers = {"Idempotency-Key": once} if keyed else {}
        answer = self.send(scope, "admin", "/keys", body, **headers)
        if answer.status_code == 200:
            self.acts += 1
            self.living[body["name"]] = answer.json()["id"]
            if keyed:
                self.once[once] = (scope, "/keys", body, answer.json())

    @rule(scope=scopes, act=st.sampled_from(["rotate", "revoke"]), by_name=st.booleans())
    def change_key(self, scope: str, act: str, *, by_name: bool) -> None:
        name = next(iter(self.living), "nobody")
        key = name if by_name else self.living.get(name, name)
        answer = self.send(scope, "admin", f"/keys/{key}/{act}", {})
        if answer.status_code == 403:
            return
        assert answer.status_code == (200 if name in self.living else 404)
        if answer.status_code == 200:
            self.acts += 1
            if act == "revoke":
                del self.living[name]

    @rule(number=st.integers(0, 20))
    def repeat(self, number: int) -> None:
        """A request with an Idempotency-Key gets its first response, whatever happened since."""
        if self.once:
            key = sorted(self.once)[number % len(self.once)]
            scope, path, body, first = self.once[key]
            answer = self.server.ask(
                scope, "POST", path, json=body, headers={"Idempotency-Key": key}
            )
            assert (answer.status_code, answer.json()) == (200, first)

    @rule(scope=scopes, device=devices)
    def act_on_what_was_changed(self, scope: str, device: int) -> None:
        path = f"/devices/{self.serials[device]}/revoke"
        answer = self.send(scope, "operate", path, {}, **{"If-Match": '"of-before"'})
        assert answer.status_code in {403, 412}

    @rule(scope=scopes, path=st.sampled_from(["/devices", "/keys", "/acts", "/statistics"]))
    def read(self, scope: str, path: str) -> None:
        least = {"/keys": "admin", "/statistics": "monitor"}.get(path, "read")
        answer = self.server.ask(scope, "GET", path)
        assert answer.status_code == (200 if RANK.get(scope, 0) >= RANK[least] else 403)

    @invariant()
    def agree(self) -> None:
        if hasattr(self, "status"):
            found = {
                serial: self.server.read(f"/devices/{serial}")["status"] for serial in self.serials
            }
            assert found == self.status
            assert self.server.count_acts() == self.acts


@pytest.mark.soak
def test_random_operators(server: Administered) -> None:
    Operators.server, Operators.requests = server, 0
    run_state_machine_as_test(
        Operators,
        settings=settings(
            max_examples=times(3, 60),
            stateful_step_count=20,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        ),
    )
    assert Operators.requests > 0


OPERATIONS = sorted(
    {
        *(("GET", path) for path in ("/devices", "/devices/{serial}", "/flags", "/validations")),
        *(("GET", path) for path in ("/keys", "/keys/{key}", "/tables", "/tables/{table_id}")),
        *(("GET", path) for path in ("/acts", "/acts/{act_id}", "/validations/{request_id}")),
        *(("GET", path) for path in ("/issuers", "/statistics")),
        *(("POST", f"/devices/{{serial}}/{act}") for act in ALLOWED),
        *(("POST", path) for path in ("/devices/{serial}/re-enrol", "/devices/bulk")),
        *(("POST", path) for path in ("/keys", "/keys/{key}/rotate", "/keys/{key}/revoke")),
        ("POST", "/flags/review"),
    }
)


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_whatever_is_sent(server: Administered, method: str, path: str) -> None:
    """No 5xx, nothing undocumented, and nothing beyond a role. A refused request leaves no act."""
    operation = server.schema[API + path][method]
    [security, *_] = operation.definition.raw["security"]
    allowed = set(security["accessKey"])

    @settings(
        max_examples=times(8, 200),
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(), scope=st.sampled_from(SCOPES))
    def send(case: Case[Any], scope: str) -> None:
        acts = server.count_acts()
        headers = {"Authorization": f"Bearer {server.keys[scope]}"}
        answer = case.call(headers=headers, timeout=30)
        assert answer.status_code < 500
        # A path with a control character is no path of this route, so it is 404 for every key.
        assert answer.status_code in ({403, 404, 405} if scope not in allowed else {*range(600)})
        if scope in allowed:
            assert answer.status_code not in {401, 403}
        if answer.status_code != 200 or method == "GET":
            assert server.count_acts() == acts
        case.validate_response(answer, checks=[status_code_conformance, content_type_conformance])

    send()


def test_every_operation_is_tried(server: Administered) -> None:
    """Those of the OpenAPI document that have the tag `administer`."""
    documented = {
        (result.ok().method.upper(), result.ok().path.removeprefix(API))
        for result in server.schema.get_all_operations()
        if "administer" in (result.ok().tags or ())
    }
    assert documented == set(OPERATIONS)
