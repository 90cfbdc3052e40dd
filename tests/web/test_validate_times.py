"""How long a FAIL takes must not tell why it is one."""

import json
import random
import statistics
import time

from tests.support.camera import VALIDATE, wire
from tests.support.running import Running
from tests.web.test_validate import fail_kinds

REQUESTS_OF_A_KIND = 80
ROUNDS = 4
TOLERANCE = 0.25


def medians(running: Running) -> dict[str, float]:
    """The median time of each kind of FAIL, all of them asked for in turns."""
    kinds = fail_kinds(running)
    times: dict[str, list[float]] = {name: [] for name in kinds}
    order = list(kinds) * REQUESTS_OF_A_KIND
    random.shuffle(order)
    headers = {"Content-Type": "application/json"}
    with running.client(headers=headers) as client:
        for name in order:
            body = json.dumps(wire(kinds[name].make())).encode()
            began = time.perf_counter()
            response = client.post(VALIDATE, content=body)
            times[name].append(time.perf_counter() - began)
            assert response.json()["validation_result"] == "FAIL"
    return {name: statistics.median(measured) for name, measured in times.items()}


def test_times_do_not_tell_why_a_token_failed(running: Running) -> None:
    """Threat 18: the medians of all kinds of FAIL lie close together.

    A difference that the program makes shows in every round; one that a busy machine makes does
    not, so one quiet round in a few is proof enough.
    """
    seen = []
    for _ in range(ROUNDS):
        by_kind = medians(running)
        seen.append(by_kind)
        if max(by_kind.values()) <= min(by_kind.values()) * (1 + TOLERANCE):
            return
    raise AssertionError(f"the times differ in every round: {seen}")
