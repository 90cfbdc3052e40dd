"""Cameras that are killed, at any point, against a real server: they always come back.

`make soak` kills 200 of each kind on each database, `make test` a few. The seed is
printed where a test fails.
"""

import random
import signal
import time
from pathlib import Path

import pytest

from birthmark_sma.protocol.bundle import parse_bundle
from tests.end_to_end.conftest import Start
from tests.support.cameras.camera import VALIDATE, wire
from tests.support.cameras.killed_camera import CAPTURES, Journal, Life, live
from tests.support.programs.running import Running, new_serial
from tests.support.soak import times

pytestmark = pytest.mark.soak

KILLS = times(12, 200)
LIVES_OF_ONE = 8


def first_life(running: Running, folder: Path, **options: bool) -> Life:
    """A camera that nobody has heard of yet."""
    serial = new_serial("mortal")
    return Life(folder / serial, running.server.url, serial, folder / f"{serial}.log", **options)


def lines_of(life: Life) -> int:
    """How many lines run from the camera's first start to its end."""
    assert live(life) == 0
    return int(Journal(life.journal).read().all("lines")[-1])


def seconds_of(life: Life) -> float:
    """Return the time in seconds from the camera's start to its end."""
    began = time.monotonic()
    assert live(life) == 0
    return time.monotonic() - began


def assert_came_back(life: Life, running: Running) -> Journal:
    """It stands; one device is registered; nothing came twice, and nothing is lost."""
    journal = Journal(life.journal).read()
    serials = "SELECT count(*) FROM registered_devices WHERE device_serial = ?"
    assert running.rows(serials, life.serial) == [(1,)]
    nonces = journal.all("nonce")
    assert len(nonces) >= CAPTURES
    assert len(set(nonces)) == len(nonces), "a nonce was used twice"
    assert set(journal.all("queued")) <= set(journal.all("sent")), "a bundle was lost"
    for n, events in enumerate(journal.lives):
        sent = [what for event, what in events if event == "sent"]
        assert len(set(sent)) == len(sent)
        # That the last one was acknowledged may have died with the camera; of the others it is
        # certain, as the next one's turn had come.
        done = set(sent if events[-1][0] == "lines" else sent[:-1])
        later = {what for life in journal.lives[n + 1 :] for event, what in life if event == "sent"}
        assert not done & later, "an acknowledged bundle was sent again"
    bundle = parse_bundle(life.journal.with_suffix(".bundle").read_bytes())
    with running.client() as client:
        answer = client.post(VALIDATE, json=wire(bundle.content.camera_token)).json()
    assert answer["validation_result"] == "PASS"
    assert answer["device_serial"] == life.serial
    return journal


@pytest.mark.parametrize("ours_alone", [True, False], ids=["our lines", "with the HTTP client's"])
def test_killed_at_random_lines(running: Running, tmp_path: Path, ours_alone: bool) -> None:
    """Threats 8 and 30: SIGKILL before a random line, again and again, then a life to the end."""
    first, later = (
        lines_of(life)
        for started in [first_life(running, tmp_path, ours_alone=ours_alone)]
        for life in (started, started)
    )
    assert first > later > 200
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")  # noqa: T201  pytest shows it where the test fails
    chance = random.Random(seed)
    killed = 0
    while killed < KILLS:
        life = first_life(running, tmp_path, ours_alone=ours_alone, sealed=chance.random() < 0.1)
        for n in range(chance.randint(1, LIVES_OF_ONE)):
            last = chance.randint(1, later if n > 2 else first)
            code = live(Life(**vars(life) | {"last_line": last}))
            # A camera that is provisioned has fewer lines to run, and may come to its own end.
            assert code in {-signal.SIGKILL, 0}, f"at line {last} of {life.serial}"
            killed += code == -signal.SIGKILL
        assert live(life) == 0
        assert_came_back(life, running)
    assert killed >= KILLS


def test_killed_at_random_times(running: Running, tmp_path: Path) -> None:
    """Threats 8 and 30: wherever it is then, in the kernel or in a library."""
    chance = random.SystemRandom()
    longest = seconds_of(first_life(running, tmp_path))  # on a fast machine, most would be too late
    killed = 0
    for _ in range(4 * KILLS):
        life = first_life(running, tmp_path)
        for _ in range(chance.randint(1, 3)):
            killed += live(life, chance.uniform(0, longest)) == -signal.SIGKILL
        assert live(life) == 0
        assert_came_back(life, running)
        if killed >= KILLS:
            break
    assert killed >= KILLS


def test_the_server_is_killed_too(start_server: Start, tmp_path: Path) -> None:
    """Threat 30: what the authority has answered it answers again, also after its own SIGKILL."""
    running = start_server()
    life = first_life(running, tmp_path)
    total = lines_of(first_life(running, tmp_path))
    # Three quarters of the way the answer is there, and not yet on the camera's disk.
    for last in range(total // 8, total, total // 8):
        assert live(Life(**vars(life) | {"last_line": last})) in {-signal.SIGKILL, 0}
        if last == total // 2:
            running.server.kill()
            running.server.close()
            running = start_server()
            life = Life(**vars(life) | {"url": running.server.url})
    assert live(life) == 0
    assert_came_back(life, running)
