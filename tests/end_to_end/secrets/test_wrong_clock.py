"""A server whose machine's clock is a day ahead, beside one whose clock is right."""

from datetime import timedelta
from functools import partial
from pathlib import Path

from tests.support.cameras.camera import PROVISION, provision_body
from tests.support.programs.commands import sma
from tests.support.programs.running import wait_until
from tests.support.programs.server import Server, server_environ
from tests.support.programs.wrong_clock import set_machine_clock_ahead

AHEAD = partial(set_machine_clock_ahead, timedelta(hours=25))


def test_it_says_so_and_takes_no_first_answer(postgres_url: str, tmp_path: Path) -> None:
    """Threat 45: merely started, it must not leave a camera whose answer was lost at 409."""
    environ = server_environ(tmp_path / "right", postgres_url) | {"SMA_TABLES": "5"}
    assert sma("init", environ=environ).returncode == 0
    body, key = provision_body("camera-1"), {"Idempotency-Key": "lost"}
    with Server(tmp_path / "right", database_url=postgres_url) as right:
        with right.client() as client:
            first = client.post(PROVISION, json=body, headers=key)
            assert first.status_code == 200
            assert client.get("/health/ready").json() == {"status": "ready"}
        with (
            Server(tmp_path / "wrong", database_url=postgres_url, before=[AHEAD]) as wrong,
            wrong.client() as client,
        ):
            ready = client.get("/health/ready")
            assert ready.status_code == 200
            assert ready.json()["status"] == "ready"
            assert ready.json()["clock"].endswith("seconds ahead of the database's")
            wait_until(lambda: "clock is wrong" in wrong.said(), 30)
            another = client.post(PROVISION, json=provision_body("camera-2"))
            assert another.status_code == 200
        with right.client() as client:
            again = client.post(PROVISION, json=body, headers=key)
    assert again.status_code == 200
    assert again.json() == first.json()
