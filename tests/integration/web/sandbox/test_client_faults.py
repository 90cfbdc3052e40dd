"""The fault table of `birthmark_sma.client`, against a real sandbox and by table id alone."""

import asyncio
import secrets
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import pytest

from birthmark_sma.client import (
    AsyncAuthorityClient,
    AuthorityClient,
    Cause,
    Fail,
    Indeterminate,
    Options,
    Outcome,
    Pass,
    VerifiedBundle,
)
from birthmark_sma.protocol.camera_token import CameraToken
from tests.support.programs.running import Running

IMPATIENT = Options(
    deadline=2.5, read_timeout=0.6, attempts=2, backoff=0.005, max_backoff=0.02, circuit_failures=99
)


def scripted(table_id: int, number: int = 0) -> CameraToken:
    """A camera token that asks for something."""
    return CameraToken(secrets.token_bytes(48), table_id, number, secrets.token_bytes(12))


def with_threads(url: str, token: CameraToken) -> Outcome:
    with AuthorityClient(url, options=IMPATIENT) as client:
        return client.validate(token)


def together(url: str, token: CameraToken) -> Outcome:
    with AuthorityClient(url, options=IMPATIENT) as client:
        outcomes: Sequence[Outcome] = client.validate_many([token, token])
        assert type(outcomes[0]) is type(outcomes[1])
        return outcomes[0]


def with_asyncio(url: str, token: CameraToken) -> Outcome:
    async def ask() -> Outcome:
        async with AsyncAuthorityClient(url, options=IMPATIENT) as client:
            return await client.validate(token)

    return asyncio.run(ask())


TABLE: dict[tuple[str, int, int], Any] = {
    ("pass", 9_000, 0): Pass,
    ("not opened", 9_001, 0): Fail,
    ("unknown device", 9_002, 0): Fail,
    ("table not assigned", 9_003, 0): Fail,
    ("suspended", 9_004, 0): Fail,
    ("revoked", 9_005, 0): Fail,
    ("unknown table", 9_006, 0): Fail,
    ("unknown key index", 9_007, 0): Fail,
    ("unauthenticated", 9_401, 0): Cause.NOT_ALLOWED,
    ("forbidden", 9_403, 0): Cause.NOT_ALLOWED,
    ("already submitted", 9_409, 0): Cause.ALREADY_SUBMITTED,
    ("rate limited", 9_429, 60): Cause.RATE_LIMITED,
    ("internal error", 9_500, 0): Cause.UNAVAILABLE,
    ("unavailable", 9_503, 60): Cause.UNAVAILABLE,
    ("slow", 9_900, 3): Cause.TIMED_OUT,
    ("cut", 9_901, 0): Cause.UNREACHABLE,
    ("reset", 9_902, 0): Cause.UNREACHABLE,
    ("truncated", 9_903, 0): Cause.UNREACHABLE,
    ("garbage", 9_904, 0): Cause.NOT_UNDERSTOOD,
    ("redirected", 9_905, 0): Cause.REDIRECTED,
    ("recovers", 9_906, 1): Pass,
    ("does not recover soon enough", 9_906, 9): Cause.UNAVAILABLE,
    ("lost", 9_907, 1): Pass,
}


@pytest.mark.parametrize("ask", [with_threads, together, with_asyncio])
@pytest.mark.parametrize("fault", TABLE, ids=lambda fault: fault[0].replace(" ", "-"))
def test_each_fault_has_its_outcome(
    sandbox: Running,
    fault: tuple[str, int, int],
    ask: Callable[[str, CameraToken], Outcome],
) -> None:
    """Threat 19: verdicts come of verdicts alone, and what can be had by asking again is had."""
    _, table_id, number = fault
    outcome, expected = ask(sandbox.server.url, scripted(table_id, number)), TABLE[fault]
    if isinstance(expected, Cause):
        assert isinstance(outcome, Indeterminate), outcome
        assert outcome.cause is expected
    else:
        assert isinstance(outcome, expected), outcome


@pytest.mark.parametrize(("table_id", "expected"), [(9_000, Pass), (9_001, Fail), (9_906, Pass)])
def test_bundles_get_the_verdict_that_they_ask_for(
    sandbox: Running, table_id: int, expected: type[Outcome]
) -> None:
    """A scripted PASS names no device, so it is not taken for another one's."""
    bundle = VerifiedBundle(
        bundle_id=bytes(32),
        device_serial="camera-1",
        certificate_serial=7,
        image_hash=bytes(32),
        camera_token=scripted(table_id),
        captured_at=datetime.now(UTC),
    )
    with AuthorityClient(sandbox.server.url, options=IMPATIENT) as client:
        assert isinstance(client.validate_bundle(bundle), expected)
