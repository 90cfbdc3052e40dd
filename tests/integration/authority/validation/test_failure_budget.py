"""Requests that are under way when their caller has gathered too many FAILs."""

import asyncio
import secrets
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from birthmark_sma.authority.access.caller import Caller
from birthmark_sma.authority.authority import Authority
from birthmark_sma.authority.rate_limits.limiter import RateLimits
from birthmark_sma.authority.rate_limits.limits import Kind
from birthmark_sma.authority.validation.failure_budget import FailureBudget
from birthmark_sma.authority.validation.records import Validation
from birthmark_sma.errors import RateLimitedError
from birthmark_sma.protocol.camera_token import CameraToken
from birthmark_sma.protocol.replay import Repeat
from birthmark_sma.protocol.verdict import Reason
from birthmark_sma.rates import Rate
from tests.support.authorities import new_authority, new_camera, opened, rows_of, small_settings

CALLER, OTHER = Caller("192.0.2.7"), Caller("192.0.2.8")
BATCHES, TOKENS = 40, 200
GENUINE_BATCHES = 10


@pytest.fixture
def narrow(tmp_path: Path, database_url: str) -> Iterator[Authority]:
    """An authority whose callers may gather ten FAILs an hour."""
    # A caller may occupy half of the pool, and must have room for all that comes at once here.
    settings = small_settings(
        tmp_path, database_url, rate_failures="10/hour", pool_limit=4 * BATCHES * TOKENS
    )
    with new_authority(settings) as authority:
        yield authority


def forged() -> CameraToken:
    """A token that does not open."""
    return CameraToken(secrets.token_bytes(48), 0, 0, secrets.token_bytes(12))


def at_once(
    authority: Authority, batches: Sequence[Sequence[CameraToken]], caller: Caller = CALLER
) -> list[list[object]]:
    """Have batches judged that all come at the same time; return what each token got."""

    async def scenario() -> list[list[object]]:
        offered = [authority.validator.submit_together(each, caller) for each in batches]
        return [list(each) for each in await asyncio.gather(*offered)]

    return asyncio.run(scenario())


def kinds_of(answers: Sequence[Sequence[object]]) -> Counter[object]:
    """How many tokens passed, failed and were refused."""
    return Counter(
        each.verdict if isinstance(each, Validation) else type(each)
        for batch in answers
        for each in batch
    )


def test_one_request_overdraws(narrow: Authority) -> None:
    """Threat 36: whatever came at the same time is refused, and is not in the audit trail."""
    answers = at_once(narrow, [[forged() for _ in range(TOKENS)] for _ in range(BATCHES)])
    assert kinds_of(answers) == {"FAIL": TOKENS, RateLimitedError: (BATCHES - 1) * TOKENS}
    assert rows_of(narrow.database, "SELECT count(*) FROM validation_history") == [(TOKENS,)]
    assert rows_of(narrow.database, "SELECT count(*) FROM sighted_tokens") == [(TOKENS,)]
    with pytest.raises(RateLimitedError):
        narrow.rate_limits.take(Kind.VALIDATE, CALLER)
    camera = new_camera(narrow, "camera")
    assert kinds_of(at_once(narrow, [[camera.token()]], OTHER)) == {"PASS": 1}


def test_single_tokens_stop_at_the_limit(narrow: Authority) -> None:
    """Threat 36: a request of one token overdraws nothing."""

    async def scenario() -> list[object]:
        offered = [narrow.validator.submit_async(forged(), CALLER) for _ in range(100)]
        return list(await asyncio.gather(*offered, return_exceptions=True))

    assert kinds_of([asyncio.run(scenario())]) == {"FAIL": 10, RateLimitedError: 90}


def test_genuine_batches_are_not_slowed_down(
    narrow: Authority, tmp_path: Path, database_url: str
) -> None:
    """Several at once, of a caller who has nearly nothing left: all pass, about as fast.

    What turns cost is by batches, and so is what judging costs: the ratio is that of many batches.
    """
    camera = new_camera(narrow, "camera")

    def seconds(authority: Authority) -> float:
        batches = [[camera.token() for _ in range(TOKENS)] for _ in range(GENUINE_BATCHES)]
        began = time.perf_counter()
        answers = at_once(authority, batches)
        taken = time.perf_counter() - began
        assert kinds_of(answers) == {"PASS": GENUINE_BATCHES * TOKENS}
        return taken

    settings = small_settings(tmp_path, database_url)
    with opened(settings) as unlimited:
        ratio = 0.0
        for _ in range(12):
            both = [(seconds(unlimited), seconds(narrow)) for _ in range(3)]
            ratio = max(ratio, min(each for each, _ in both) / min(each for _, each in both))
            if ratio > 0.9:
                return
    raise AssertionError(f"genuine batches are at {ratio:.2f} of their speed")


def test_what_is_withheld_is_not_counted(tmp_path: Path, database_url: str) -> None:
    """Threat 37: what is left must not tell the verdict that a 409 withholds."""
    settings = small_settings(
        tmp_path, database_url, rate_failures="10/hour", replay="refuse-same-caller"
    )
    with new_authority(settings) as authority:
        camera = new_camera(authority, "camera")
        genuine, bad = camera.token(), forged()
        at_once(authority, [[genuine, bad]])
        left = authority.rate_limits.quotas(Kind.VALIDATE, CALLER)
        assert [quota.remaining for quota in left] == [9]
        for token, reason in ((genuine, Reason.GENUINE), (bad, Reason.NOT_OPENED)):
            for _ in range(15):
                [[again]] = at_once(authority, [[token]])
                assert isinstance(again, Validation)
                assert (again.reason, again.repeat) == (reason, Repeat.REPLAYED)
        assert authority.rate_limits.quotas(Kind.VALIDATE, CALLER)[0].remaining == 9
        at_once(authority, [[forged()]])
        assert authority.rate_limits.quotas(Kind.VALIDATE, CALLER)[0].remaining == 8


def test_turns() -> None:
    """Those that may still fail what is left go first, and each caller by itself."""
    limits = RateLimits({Kind.FAILURES: (Rate(3, 60),)})
    one, two, three = object(), object(), object()
    turns = FailureBudget(
        limits, [one, one, two, two, two, three, None], ["a", "a", "a", "a", "a", "b", "a"]
    )
    assert turns.next() == [0, 1, 2, 3, 4, 5, 6]
    assert turns.next() == []
    turns = FailureBudget(limits, [one] * 3 + [two, three], ["a"] * 5)
    assert turns.next() == [0, 1, 2]
    turns.failed(0)
    turns.failed(1)
    assert turns.next() == [3]
    turns.failed(3)
    assert turns.next() == []
    assert set(turns.refused) == {4}
