"""The cameras in Node and in Java renew their certificates, however often they are killed."""

import json
import os
import random
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from birthmark_sma.client import AuthorityClient, Pass, verify_bundle
from tests.integration.examples.test_quick_starts import EXAMPLES, classes, root_of
from tests.support.http.faulty_server import FaultyServer, Visit
from tests.support.programs.running import Running, new_serial
from tests.support.soak import times

__all__ = ["classes"]

SECONDS = 120
KILLS = times(4, 40)
RENEW = "/api/v1/devices/renew"
PAST = {"suggestedWindow": {"start": "2026-01-01T00:00:00Z", "end": "2026-01-02T00:00:00Z"}}
FUTURE = {"suggestedWindow": {"start": "2126-01-01T00:00:00Z", "end": "2126-01-02T00:00:00Z"}}
MAIN = "org.birthmark.camera.DesktopCamera"


class Relay:
    """Stands between a camera and a sandbox. It answers for the window, and can lose answers."""

    def __init__(self, running: Running) -> None:
        self._running = running
        self.window = FUTURE
        self.renewals: list[dict[str, Any]] = []
        self.act: Callable[[Visit], bool] = lambda _: False
        """Returns True if the renewal's answer must not reach the camera."""
        self.answer_first: Callable[[Visit], bool] | None = None
        """Answers renewals in place of the authority."""

    def __call__(self, visit: Visit) -> None:
        """Answer one request."""
        head, _, body = visit.request.partition(b"\r\n\r\n")
        method, path, _ = head.split(b"\r\n")[0].decode().split(" ")
        if method == "GET":
            visit.answer(self.window, Retry_After="3600")
            return
        if path == RENEW:
            self.renewals.append(json.loads(body))
            if self.answer_first is not None:
                self.answer_first(visit)
                return
        kept = {name: value for name, value in visit.headers.items() if name == "idempotency-key"}
        kept["Content-Type"] = "application/json"
        with self._running.client() as client:
            answer = client.post(
                path, content=body, headers=kept | {"Content-Type": "application/json"}
            )
        if path == RENEW and self.act(visit):
            return
        visit.answer(answer.content, answer.status_code)


@dataclass(frozen=True)
class Program:
    """A camera in a directory of its own, that talks to the relay."""

    command: list[str]
    place: Path

    def start(self) -> "subprocess.Popen[bytes]":
        """Start it."""
        return subprocess.Popen(
            self.command,
            cwd=self.place,
            env={"PATH": os.environ["PATH"]},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def capture(self) -> tuple[bytes, str]:
        """Run it to its end; return the bundle, and what it said."""
        process = self.start()
        out, said = process.communicate(timeout=SECONDS)
        assert process.returncode == 0, said.decode()
        return out.strip(), said.decode()

    def forget_pauses(self) -> None:
        """Let the time of all pauses pass."""
        for path in self.place.iterdir():
            text = path.read_text() if path.name.startswith("state") else ""
            if text.startswith("{"):
                path.write_text(json.dumps(json.loads(text) | {"askAt": 0}))
            elif text:
                lines = [line for line in text.splitlines() if not line.startswith("ask-at")]
                path.write_text("\n".join(lines) + "\n")


@pytest.fixture(params=["node", "java"])
def program(
    request: pytest.FixtureRequest, sandbox: Running, classes: Path, tmp_path: Path
) -> Callable[[str, str], Program]:
    """Make a camera of each kind: `program(url, serial)`."""
    (tmp_path / "picture.jpg").write_bytes(b"a picture")
    (tmp_path / "root.crt").write_bytes(root_of(sandbox).public_bytes(Encoding.PEM))

    def make(url: str, serial: str) -> Program:
        if request.param == "node":
            command = ["node", str(EXAMPLES / "camera.mjs"), url, "root.crt", serial, "picture.jpg"]
        else:
            command = ["java", "-XX:TieredStopAtLevel=1", "-cp", str(classes), MAIN, url, serial]
            command += ["picture.jpg", "state.properties"]
        return Program(command, tmp_path)

    return make


def judge(sandbox: Running, bundle: bytes, serial: str) -> str:
    """Fail unless a bundle passes; return the serial number of its certificate."""
    verified = verify_bundle(bundle, root=root_of(sandbox), now=datetime.now(UTC))
    with AuthorityClient(sandbox.server.url) as client:
        outcome = client.validate_bundle(verified)
    assert isinstance(outcome, Pass)
    assert outcome.device_serial == serial
    return f"{verified.certificate_serial:x}"


def current(sandbox: Running, serial: str) -> str:
    """Return the serial number of the device's current certificate."""
    query = "SELECT certificate_serial FROM registered_devices WHERE device_serial = ?"
    [(found,)] = sandbox.rows(query, serial)
    return str(found)


def test_renewed_when_it_is_time(sandbox: Running, program: Callable[[str, str], Program]) -> None:
    """Not before; then once; and the camera stays the same device."""
    serial = new_serial("state")
    relay = Relay(sandbox)
    with FaultyServer(relay) as server:
        camera = program(server.url, serial)
        first, _ = camera.capture()
        before = judge(sandbox, first, serial)
        camera.forget_pauses()
        camera.capture()
        assert relay.renewals == []
        relay.window = PAST
        camera.capture()
        assert relay.renewals == [], "it asks again before Retry-After"
        camera.forget_pauses()
        second, _ = camera.capture()
        third, _ = camera.capture()
    assert len(relay.renewals) == 1
    assert judge(sandbox, second, serial) == judge(sandbox, third, serial) != before
    assert judge(sandbox, third, serial) == current(sandbox, serial)
    judge(sandbox, first, serial)


def test_a_lost_answer_and_others(sandbox: Running, program: Callable[[str, str], Program]) -> None:
    """Threat 8: the camera captures meanwhile, pauses, and sends the same CSR again."""
    serial = new_serial("state")
    relay = Relay(sandbox)
    answers: list[Callable[[Visit], None]] = [
        lambda visit: visit.reset(),
        lambda visit: visit.answer({"detail": "later"}, 503, Retry_After="7200"),
        lambda visit: visit.answer(b"<html>", 200, "text/html"),
        lambda visit: visit.answer({"detail": "suspended", "type": "x"}, 403),
    ]
    with FaultyServer(relay) as server:
        camera = program(server.url, serial)
        before = judge(sandbox, camera.capture()[0], serial)
        relay.window = PAST
        for answer in answers:

            def act(visit: Visit, answer: Callable[[Visit], None] = answer) -> bool:
                answer(visit)
                return True

            relay.act = act
            camera.forget_pauses()
            bundle, said = camera.capture()
            assert judge(sandbox, bundle, serial) == before
            assert said
            count = len(relay.renewals)
            camera.capture()
            assert len(relay.renewals) == count, "it loops"
        relay.act = lambda _: False
        camera.forget_pauses()
        bundle, _ = camera.capture()
    assert judge(sandbox, bundle, serial) == current(sandbox, serial) != before
    assert len({body["csr"] for body in relay.renewals}) == 1
    assert len({body["signature"] for body in relay.renewals}) == len(answers) + 1


def test_killed_while_it_renews(sandbox: Running, program: Callable[[str, str], Program]) -> None:
    """Threats 8 and 30: SIGKILL before and after the authority answers, and at random times."""
    serial = new_serial("state")
    relay = Relay(sandbox)
    with FaultyServer(relay) as server:
        camera = program(server.url, serial)
        camera.capture()
        relay.window = PAST
        camera.forget_pauses()
        process = camera.start()

        def kill(_: Visit) -> bool:
            process.kill()
            return True

        relay.act = kill  # the authority has issued the certificate, and the camera never hears it
        process.wait(SECONDS)
        assert len(relay.renewals) == 1
        relay.act = lambda _: False
        for _ in range(KILLS):
            process = camera.start()
            try:
                process.wait(random.SystemRandom().uniform(0.05, 1.5))
            except subprocess.TimeoutExpired:
                process.kill()
            process.communicate()
        camera.forget_pauses()
        bundle, _ = camera.capture()
    assert judge(sandbox, bundle, serial) == current(sandbox, serial)
    earlier = "SELECT count(*) FROM earlier_certificates WHERE device_serial = ?"
    assert sandbox.rows(earlier, serial) == [(len({b["csr"] for b in relay.renewals}),)]
