"""Cameras that are killed while they renew, against a real server: none is stranded.

`make soak` kills more of them. The seed is printed where a test fails.
"""

import random
import signal
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509

from birthmark_sma.authority.ca.issuers import ROOT_PATH
from birthmark_sma.client import verify_bundle
from tests.end_to_end.conftest import Start
from tests.support.cameras.camera import VALIDATE, wire
from tests.support.cameras.killed_camera import Journal, Life, live
from tests.support.programs.running import Running, new_serial
from tests.support.soak import times

pytestmark = pytest.mark.soak

KILLS = times(26, 200)
LIVES_OF_ONE = 8
"""Kills of one camera. A device gets up to 10 certificates in an hour."""


def provisioned(running: Running, folder: Path) -> Life:
    """Return the next life of a camera that is provisioned."""
    serial = new_serial("renewing")
    life = Life(folder / serial, running.server.url, serial, folder / f"{serial}.log")
    assert live(life) == 0
    return replace(life, renews=True)


def assert_not_stranded(life: Life, running: Running) -> None:
    """Exactly one certificate is valid, the camera has it, and its picture passes."""
    journal = Journal(life.journal).read()
    assert set(journal.all("queued")) <= set(journal.all("sent")), "a bundle was lost"
    nonces = journal.all("nonce")
    assert len(set(nonces)) == len(nonces), "a nonce was used twice"
    text = life.journal.with_suffix(".bundle").read_bytes()
    with running.client() as client:
        root = x509.load_der_x509_certificate(client.get(ROOT_PATH).content)
        bundle = verify_bundle(text, root=root, now=datetime.now(UTC))
        answer = client.post(VALIDATE, json=wire(bundle.camera_token)).json()
    assert (answer["validation_result"], answer["device_serial"]) == ("PASS", life.serial)
    current = "SELECT certificate_serial FROM registered_devices WHERE device_serial = ?"
    earlier = "SELECT certificate_serial FROM earlier_certificates WHERE device_serial = ?"
    revoked = "SELECT certificate_serial FROM revoked_certificates WHERE device_serial = ?"
    [(serial,)] = running.rows(current, life.serial)
    assert serial == journal.all("certificate")[-1]
    old = {each for (each,) in running.rows(earlier, life.serial)}
    assert old
    assert {each for (each,) in running.rows(revoked, life.serial)} == old


@pytest.mark.parametrize("ours_alone", [True, False], ids=["our lines", "with the HTTP client's"])
def test_killed_while_they_renew(running: Running, tmp_path: Path, ours_alone: bool) -> None:
    """Threats 8 and 30: SIGKILL before a random line of the renewal, again and again."""
    life = replace(provisioned(running, tmp_path), ours_alone=ours_alone)
    assert live(life) == 0
    lines = int(Journal(life.journal).read().all("lines")[-1])
    assert_not_stranded(life, running)
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")  # noqa: T201  pytest shows it where the test fails
    chance = random.Random(seed)
    killed = 0
    while killed < KILLS // 2:
        life = replace(provisioned(running, tmp_path), ours_alone=ours_alone)
        for _ in range(chance.randint(1, LIVES_OF_ONE)):
            code = live(replace(life, last_line=chance.randint(1, lines)))
            assert code in {-signal.SIGKILL, 0}, life.serial
            killed += code == -signal.SIGKILL
        assert live(life) == 0
        assert_not_stranded(life, running)


def test_the_server_is_killed_while_they_renew(start_server: Start, tmp_path: Path) -> None:
    """Threat 30: the same CSR gets the same certificate, also after the server's own SIGKILL."""
    running = start_server()
    life = provisioned(running, tmp_path)
    first = provisioned(running, tmp_path)
    assert live(first) == 0
    lines = int(Journal(first.journal).read().all("lines")[-1])
    for number, last in enumerate(range(lines // 9, lines, lines // 9)):
        assert live(replace(life, last_line=last)) in {-signal.SIGKILL, 0}
        if number in {3, 5}:
            running.server.kill()
            running.server.close()
            running = start_server()
            life = replace(life, url=running.server.url)
    assert live(life) == 0
    assert_not_stranded(life, running)
