"""How long a FAIL takes must not tell why it is one."""

import json
import random
import statistics
import time

from tests.integration.web.api.test_validate import fail_kinds
from tests.support.cameras.camera import VALIDATE, wire
from tests.support.programs.running import Running

REQUESTS_OF_A_KIND = 80
ROUNDS = 4
TOLERANCE = 0.25


def measure(running: Running, times: dict[str, list[float]]) -> None:
    """Add the times of each kind of FAIL, all of them asked for in turns."""
    kinds = fail_kinds(running)
    order = list(kinds) * REQUESTS_OF_A_KIND
    random.shuffle(order)
    headers = {"Content-Type": "application/json"}
    with running.client(headers=headers) as client:
        for name in order:
            body = json.dumps(wire(kinds[name].make())).encode()
            began = time.perf_counter()
            response = client.post(VALIDATE, content=body)
            times.setdefault(name, []).append(time.perf_counter() - began)
            assert response.json()["validation_result"] == "FAIL"


def test_times_do_not_tell_why_a_token_failed(running: Running) -> None:
    """Threat 18: the lower quartiles of all kinds of FAIL lie close together.

    A busy machine only ever adds to a time, so the quicker answers tell best what the program does.
    What it adds shows more rarely the more answers there are; what the program adds does not.
    """
    times: dict[str, list[float]] = {}
    quartiles: dict[str, float] = {}
    for _ in range(ROUNDS):
        measure(running, times)
        quartiles = {name: statistics.quantiles(seen)[0] for name, seen in times.items()}
        if max(quartiles.values()) <= min(quartiles.values()) * (1 + TOLERANCE):
            return
    raise AssertionError(f"the times differ: {quartiles}")
