"""Answers: nothing raises, and nothing but the contract's FAIL is Fail."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from birthmark_sma.client.outcome import Cause, Fail, Indeterminate, Pass
from birthmark_sma.client.responses import HttpResponse, TransportError, read
from birthmark_sma.http_requests import parse_retry_after
from tests.support.http.faulty_server import FAILED, PASSED

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)
JSON = {"content-type": "application/json"}


def understood(
    body: bytes, count: int = 1, status: int = 200, headers: Mapping[str, str] = JSON
) -> Any:
    """What an answer means."""
    reply = HttpResponse(status, {**JSON, **headers}, body)
    return read(reply, count=count, request_id="id", now=NOW)


def one(result: object) -> Any:
    """What one result means."""
    [outcome] = understood(json.dumps({"results": [result]}).encode())
    return outcome


def test_the_verdicts() -> None:
    at = datetime(2026, 1, 31, 12, tzinfo=UTC)
    assert one(PASSED) == Pass("SimulatedMfg", at, "Test", "camera-1")
    assert one(FAILED) == Fail("SimulatedMfg", at)
    unnamed = {k: v for k, v in PASSED.items() if not k.startswith("device_")}
    assert one(unnamed) == Pass("SimulatedMfg", at)
    for error in ("Unknown table ID", "Unknown key index"):
        assert one({"validation_result": "FAIL", "error": error}) == Fail(error=error)


@pytest.mark.parametrize(
    "timestamp",
    ["2026-01-01 00:00:00Z", "20260101T000000Z", "2026-W01-1T00Z", "2026-02-30T00:00:00Z", "Z"],
)
def test_times_that_rfc_3339_does_not_know(timestamp: str) -> None:
    assert isinstance(one(PASSED | {"timestamp": timestamp}), Indeterminate)


def test_further_fields_are_no_harm() -> None:
    """A later version may say more."""
    assert isinstance(one(PASSED | {"more": 1}), Pass)


def test_each_result_stands_for_itself() -> None:
    body = json.dumps({"results": [PASSED, {}, FAILED]}).encode()
    passed, none, failed = understood(body, count=3)
    assert isinstance(passed, Pass)
    assert isinstance(none, Indeterminate)
    assert isinstance(failed, Fail)


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.sampled_from(["PASS", "FAIL", "Unknown table ID", "2026-01-31T12:00:00.000Z"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from([*PASSED, "error", "results", "tokens"]), inner, max_size=6
        )
    ),
    max_leaves=20,
)


@given(values, st.integers(100, 599))
def test_no_json_raises_nor_fails_unsaid(value: object, status: int) -> None:
    """Threat 19: FAIL is only what says FAIL, at 200."""
    for body in (value, {"results": [value]}, {"results": value}):
        found = understood(json.dumps(body).encode(), status=status)
        if isinstance(found, TransportError):
            continue
        assert status == 200
        for outcome in found:
            assert not isinstance(outcome, Fail) or "FAIL" in json.dumps(body)


@given(st.binary(max_size=200), st.integers(0, 9_999), st.text(max_size=20), st.text(max_size=20))
def test_no_bytes_raise(body: bytes, status: int, retry_after: str, policy: str) -> None:
    """Whatever comes, it is a Fault or a list of the right length."""
    headers = {"retry-after": retry_after, "ratelimit-policy": policy}
    found = understood(body, status=status, headers=headers)
    assert isinstance(found, TransportError) or len(found) == 1


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        ("0", 0),
        (" 12 ", 12),
        ("Sat, 31 Jan 2026 12:00:30 GMT", 30),
        ("Sat, 31 Jan 2026 11:00:00 GMT", 0),
        ("Sat, 31 Jan 2026 12:00:30 -0000", 30),
        ("-1", None),
        ("1.5", None),
        ("9" * 400, None),
        ("", None),
        ("soon", None),
        ("Sat, 99 Foo 2026 12:00:00 GMT", None),
        ("٣", None),
    ],
)
def test_retry_after(value: str | None, seconds: float | None) -> None:
    """RFC 9110, section 10.2.3: seconds or a date; nonsense is as if it were not there."""
    assert parse_retry_after(value, NOW) == seconds


@pytest.mark.parametrize(
    ("policy", "count", "at_most"),
    [
        ('"validate";q=10;w=60', 11, 10),
        ('"validate";q=10;w=60', 10, None),
        ('"failures";q=2;w=60, "validate-60s";q=20;w=60, "validate-1s";q=5;w=1', 500, 5),
        ('"failures";q=2;w=60', 500, None),
        ('"validate";q=0;w=60', 500, None),
        ('"validate";q=10;w=60, "validate";q=0;w=1', 500, None),
        ("nonsense", 500, None),
    ],
)
def test_too_many_at_once(policy: str, count: int, at_most: int | None) -> None:
    """A batch larger than the limit could never pass."""
    found = understood(b"", count, 429, {"ratelimit-policy": policy})
    assert isinstance(found, TransportError)
    assert (found.cause, found.at_most) == (Cause.RATE_LIMITED, at_most)


def test_names_that_nothing_can_print() -> None:
    """Half of a surrogate pair would end the program that writes it to a log."""
    passed = json.dumps(PASSED).replace('"Test"', '"\\ud800"')
    assert isinstance(understood(b'{"results": [%b]}' % passed.encode()), TransportError)
    whole = json.dumps(PASSED | {"device_family": "\U0001f4f7"})  # written as a pair
    [outcome] = understood(b'{"results": [%b]}' % whole.encode())
    assert outcome.device_family == "\U0001f4f7"


def test_the_answer_to_another_request() -> None:
    """A proxy that hands out answers one too late gives no verdict."""
    body = json.dumps({"results": [FAILED]}).encode()
    assert isinstance(understood(body, headers={"x-request-id": "other"}), TransportError)
    assert not isinstance(understood(body, headers={"x-request-id": "id"}), TransportError)
