"""A camera whose keys were taken out of it: what an operator sees, and what a stranger can do."""

import json

from tests.end_to_end.conftest import Start
from tests.support.cameras.camera import VALIDATE, Camera, wire
from tests.support.counting import assert_counters_are_those_of_the_trail
from tests.support.programs.commands import sma
from tests.support.programs.running import Running, new_serial

LEAST = 20


def key_of(running: Running, scope: str) -> dict[str, str]:
    """Make an access key; return the header that shows it."""
    made = sma("keys", "create", scope, "--scope", scope, "--json", environ=running.environ)
    assert made.returncode == 0, made.stderr
    return {"Authorization": f"Bearer {json.loads(made.stdout)['key']}"}


def test_a_device_that_is_overused_is_suspended_where_so_configured(start_server: Start) -> None:
    """Threat 27: by a person or a setting; and nobody without a key brings that about."""
    settings = {"SMA_ABUSE": "suspend", "SMA_ABUSE_LEAST": str(LEAST)}
    running = start_server(SMA_ACCESS="open", **settings)
    with running.client() as stranger:
        victim, loud = (Camera.provisioned(stranger, new_serial()) for _ in range(2))
        for _ in range(3 * LEAST):
            assert stranger.post(VALIDATE, json=wire(victim.token())).status_code == 200
    running.server.close()
    shown = key_of(running, "validate")
    running = start_server(SMA_ACCESS="keys", **settings)
    with running.client(headers=shown) as aggregator:
        for _ in range(LEAST + 1):
            passed = aggregator.post(VALIDATE, json=wire(loud.token()))
            assert passed.json()["validation_result"] == "PASS"
        with running.database() as database:
            assert_counters_are_those_of_the_trail(database)
        checked = sma(
            *("devices", "flagged", "--check", "--json"), environ=running.environ | settings
        )
        told = json.loads(checked.stdout)
        assert [each["device_serial"] for each in told["flags"]] == [loud.serial]
        assert told["flags"][0]["pictures"] == LEAST + 1
        failed = aggregator.post(VALIDATE, json=wire(loud.token())).json()
        assert failed["validation_result"] == "FAIL"
        passed = aggregator.post(VALIDATE, json=wire(victim.token()))
        assert passed.json()["validation_result"] == "PASS"
        # A person decides otherwise, and is not overruled.
        assert sma("devices", "reinstate", loud.serial, environ=running.environ).returncode == 0
        again = sma(*("devices", "flagged", "--check"), environ=running.environ | settings)
        assert "0 newly flagged" in again.stderr
        passed = aggregator.post(VALIDATE, json=wire(loud.token()))
        assert passed.json()["validation_result"] == "PASS"
