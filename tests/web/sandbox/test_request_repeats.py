"""How often the very same request has come."""

from typing import Any

from birthmark_sma.web.sandbox import scenario_catalog
from birthmark_sma.web.sandbox.request_repeats import Repetitions, request_digest

TWICE = scenario_catalog.by_header("recovers; times=2")


class Clock:
    """A clock that a test sets."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_requests_are_counted_each_by_itself() -> None:
    repetitions = Repetitions()
    assert [repetitions.seen(each) for each in (b"a", b"a", b"b", b"a")] == [1, 2, 1, 3]


def test_what_has_ended_begins_anew() -> None:
    repetitions = Repetitions()
    repetitions.seen(b"a")
    repetitions.forget(b"a")
    repetitions.forget(b"a")
    assert repetitions.seen(b"a") == 1


def test_what_never_ended_is_forgotten_with_all_else_of_a_sandbox() -> None:
    """An hour after it came last, as devices and validations are."""
    clock = Clock()
    repetitions = Repetitions(clock)
    for clock.now, expected in ((0.0, 1), (3_000.0, 2), (6_599.0, 3), (10_200.0, 1)):
        assert repetitions.seen(b"a") == expected


def test_they_stay_few() -> None:
    repetitions = Repetitions()
    for n in range(10_001):
        repetitions.seen(n.to_bytes(4))
    assert repetitions.seen((0).to_bytes(4)) == 1
    assert repetitions.seen((10_000).to_bytes(4)) == 2


def test_what_tells_requests_apart() -> None:
    """Method, path, query, body, and what is asked for."""
    scope: dict[str, Any] = {"method": "GET", "path": "/stats", "query_string": b""}
    asked = [scenario_catalog.by_header(each) for each in ("recovers", "lost", "recovers; times=2")]
    digests = [
        request_digest(scope, b"", TWICE),
        request_digest(scope | {"method": "POST"}, b"", TWICE),
        request_digest(scope | {"path": "/health"}, b"", TWICE),
        request_digest(scope | {"query_string": b"day=1"}, b"", TWICE),
        request_digest(scope, b"{}", TWICE),
        *(request_digest(scope, b"", each) for each in asked[:2]),
    ]
    assert len(set(digests)) == len(digests)
    assert request_digest(scope, b"", asked[2]) == digests[0]
