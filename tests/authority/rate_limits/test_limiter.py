"""Rate limits of one process: who is counted, for what, and what refuses."""

import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from birthmark_sma.authority.access.caller import Caller
from birthmark_sma.authority.access.store import ROLES, AccessKey, KeyScope
from birthmark_sma.authority.rate_limits.limiter import RateLimits, make_rate_limits
from birthmark_sma.authority.rate_limits.limits import DEFAULTS, Kind
from birthmark_sma.config import load_settings
from birthmark_sma.errors import RateLimitedError
from birthmark_sma.rates import Rate, parse_rates

ONE = Caller("192.0.2.1")
OTHER = Caller("192.0.2.2")


class Clock:
    """A clock that tests move."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


def limits_of(clock: Clock | None = None, **texts: str) -> RateLimits:
    """Limits from rates by kind."""
    rates = {Kind(kind): parse_rates(text) for kind, text in texts.items()}
    return RateLimits(rates, clock=clock or Clock())


def passed(limits: RateLimits, kind: Kind, caller: Caller, times: int, cost: int = 1) -> int:
    """How many of so many requests pass."""
    count = 0
    for _ in range(times):
        try:
            limits.take(kind, caller, cost)
        except RateLimitedError:
            continue
        count += 1
    return count


def with_key(key_id: str, rate_limit: str | None, scope: KeyScope = KeyScope.VALIDATE) -> Caller:
    """A caller with an access key."""
    key = AccessKey(key_id, "a key", scope, datetime.now(UTC), rate_limit=rate_limit)
    return Caller("192.0.2.1", key)


def test_each_caller_is_counted_apart() -> None:
    """Threat 23: by its address, or by its key wherever it comes from."""
    limits = limits_of(validate="5/minute")
    assert passed(limits, Kind.VALIDATE, ONE, 10) == 5
    assert passed(limits, Kind.VALIDATE, OTHER, 10) == 5
    key = with_key("k1", None)
    assert passed(limits, Kind.VALIDATE, key, 3) == 3
    assert passed(limits, Kind.VALIDATE, replace(key, address="198.51.100.9"), 10) == 2


def test_each_kind_is_counted_apart() -> None:
    limits = limits_of(validate="5/minute", provision="3/minute", admin="2/minute")
    assert passed(limits, Kind.VALIDATE, ONE, 10) == 5
    assert passed(limits, Kind.PROVISION, ONE, 10) == 3
    assert passed(limits, Kind.ADMIN, ONE, 10) == 2
    assert limits.figures.refused == {Kind.VALIDATE: 5, Kind.PROVISION: 7, Kind.ADMIN: 8}


def test_a_batch_costs_its_tokens() -> None:
    """All of them or none."""
    limits = limits_of(validate="100/minute")
    assert passed(limits, Kind.VALIDATE, ONE, 5, cost=30) == 3
    assert passed(limits, Kind.VALIDATE, ONE, 20) == 10


def test_a_batch_beyond_the_whole_limit_is_told_so() -> None:
    limits = limits_of(validate="100/minute")
    with pytest.raises(RateLimitedError, match="101 camera tokens at once can never pass") as error:
        limits.take(Kind.VALIDATE, ONE, 101)
    assert error.value.retry_after == 60
    assert passed(limits, Kind.VALIDATE, ONE, 100) == 100


def test_several_rates_hold_together() -> None:
    """What one of them refuses counts in none."""
    clock = Clock()
    limits = limits_of(clock, admin="5/second; 7/minute")
    assert passed(limits, Kind.ADMIN, ONE, 10) == 5
    clock.now += 2
    assert passed(limits, Kind.ADMIN, ONE, 10) == 2
    with pytest.raises(RateLimitedError) as error:
        limits.take(Kind.ADMIN, ONE)
    assert error.value.policy == "admin-60s"
    assert [quota.policy for quota in limits.quotas(Kind.ADMIN, ONE)] == ["admin-1s", "admin-60s"]


def test_nobody_spends_a_minute_at_once() -> None:
    """A tenth of it, and then as much as comes back. The whole minute is as long as before."""
    clock = Clock()
    limits = limits_of(clock, validate="6000/minute")
    assert passed(limits, Kind.VALIDATE, ONE, 1_000) == 600
    with pytest.raises(RateLimitedError, match="the limit is 600 in 6 seconds") as error:
        limits.take(Kind.VALIDATE, ONE)
    assert error.value.policy == "validate-burst"
    assert error.value.retry_after == 7
    got = 600
    for _ in range(59):
        clock.now += 1
        got += passed(limits, Kind.VALIDATE, ONE, 200)
    assert 5_000 <= got <= 6_000
    names = [quota.policy for quota in limits.quotas(Kind.VALIDATE, ONE)]
    assert names == ["validate-burst", "validate"]


def test_a_batch_that_the_limit_allows_passes_a_burst() -> None:
    """It may exceed the burst, and is paid for afterwards."""
    clock = Clock()
    limits = limits_of(clock, validate="3000/minute")
    assert passed(limits, Kind.VALIDATE, ONE, 1, cost=1_000) == 1
    burst, whole = limits.quotas(Kind.VALIDATE, ONE)
    assert (burst.remaining, whole.remaining) == (0, 2_000)
    with pytest.raises(RateLimitedError) as error:
        limits.take(Kind.VALIDATE, ONE, 1_000)
    wait = error.value.retry_after
    assert burst.more_in == wait > 6
    clock.now += wait - 1
    assert passed(limits, Kind.VALIDATE, ONE, 1, cost=1_000) == 0
    clock.now += 1
    assert passed(limits, Kind.VALIDATE, ONE, 1, cost=1_000) == 1
    with pytest.raises(RateLimitedError, match="3001 camera tokens at once can never pass"):
        limits.take(Kind.VALIDATE, ONE, 3_001)


@pytest.mark.parametrize("text", ["10/second; 20/minute", "20/minute; 40/hour", "200/minute"])
def test_a_caller_that_waits_as_told_passes(text: str) -> None:
    """If several rates are used up, the wait is that of the one that takes longest."""
    clock = Clock()
    limits = limits_of(clock, validate=text)
    for _ in range(30):
        while passed(limits, Kind.VALIDATE, ONE, 1):
            pass
        with pytest.raises(RateLimitedError) as error:
            limits.take(Kind.VALIDATE, ONE)
        clock.now += error.value.retry_after
        assert passed(limits, Kind.VALIDATE, ONE, 1) == 1


@pytest.mark.parametrize("cost", [10, 100, 150, 250, 600, 1_000])
def test_batches_of_any_size_get_their_allowance(cost: int) -> None:
    """Over ten minutes, 85 % of what the same limit gives without a burst, or more."""
    got = []
    for text in ("3000/minute", "3000/second; 3000/minute"):
        clock = Clock()
        limits = limits_of(clock, validate=text)
        got.append(0)
        for _ in range(600):
            while passed(limits, Kind.VALIDATE, ONE, 1, cost):
                got[-1] += cost
            clock.now += 1
    assert got[0] >= 0.85 * got[1]


def test_failures_and_guesses_have_no_burst() -> None:
    """They are alarms and no allowances."""
    limits = limits_of(failures="6000/minute", guesses="600/minute")
    limits.failed(ONE.identity, 5_000)
    limits.take(Kind.VALIDATE, ONE)
    for _ in range(600):
        limits.record_failed_auth("192.0.2.1")


def test_a_key_brings_its_own_rate() -> None:
    """For its own scope, in place of the default."""
    limits = limits_of(validate="5/minute", admin="2/minute")
    assert passed(limits, Kind.VALIDATE, with_key("slow", "1/minute"), 10) == 1
    assert passed(limits, Kind.VALIDATE, with_key("quick", "8/minute"), 10) == 8
    assert passed(limits, Kind.VALIDATE, with_key("free", "none"), 10) == 10
    assert passed(limits, Kind.ADMIN, with_key("quick", "8/minute"), 10) == 2
    assert passed(limits_of(), Kind.VALIDATE, with_key("alone", "1/minute"), 10) == 1


@pytest.mark.parametrize("role", ROLES)
def test_the_rate_of_a_role_is_that_of_its_requests(role: KeyScope) -> None:
    limits = limits_of(validate="5/minute", admin="2/minute")
    assert passed(limits, Kind.ADMIN, with_key("quick", "8/minute", role), 10) == 8
    assert passed(limits, Kind.VALIDATE, with_key("quick", "8/minute", role), 10) == 5


def test_keys_of_one_rate_are_counted_apart() -> None:
    limits = limits_of()
    assert passed(limits, Kind.VALIDATE, with_key("a", "3/minute"), 10) == 3
    assert passed(limits, Kind.VALIDATE, with_key("b", "3/minute"), 10) == 3


def test_a_key_with_a_broken_rate_gets_the_default(caplog: pytest.LogCaptureFixture) -> None:
    """Whatever somebody wrote into the table."""
    limits = limits_of(validate="5/minute")
    assert passed(limits, Kind.VALIDATE, with_key("k", "a few"), 10) == 5
    assert len(caplog.records) == 1
    assert "a few" not in caplog.text


@pytest.mark.parametrize(
    ("address", "same", "different"),
    [
        ("2001:db8::1", "2001:db8::ffff:0:1", "2001:db8:0:1::1"),
        ("::ffff:192.0.2.9", "192.0.2.9", "::ffff:192.0.2.10"),
        ("fe80::1%eth0", "fe80::2%eth0", "fe80:0:0:1::1"),
        ("not:an:address", "not:an:address", "another:one"),
    ],
)
def test_an_ipv6_network_is_one_caller(address: str, same: str, different: str) -> None:
    """Threat 23: who has one address of 2^64 has all of them."""
    limits = limits_of(validate="5/minute")
    assert passed(limits, Kind.VALIDATE, Caller(address), 3) == 3
    assert passed(limits, Kind.VALIDATE, Caller(same), 10) == 2
    assert passed(limits, Kind.VALIDATE, Caller(different), 10) == 5


def test_failures_hold_back_until_they_drain() -> None:
    """A caller that gathers FAILs slows down; others do not, nor what else it asks for."""
    clock = Clock()
    limits = limits_of(clock, failures="10/minute", admin="100/minute")
    for _ in range(9):
        limits.take(Kind.VALIDATE, ONE)
        limits.failed(ONE.identity)
    limits.take(Kind.VALIDATE, ONE)
    assert limits.quotas(Kind.VALIDATE, ONE)[0][:3] == ("failures", Rate(10, 60), 1)
    limits.failed(ONE.identity, 500)
    with pytest.raises(RateLimitedError, match="FAIL") as error:
        limits.take(Kind.VALIDATE, ONE)
    assert error.value.policy == "failures"
    limits.take(Kind.ADMIN, ONE)
    limits.take(Kind.VALIDATE, OTHER)
    clock.now += error.value.retry_after - 1
    assert passed(limits, Kind.VALIDATE, ONE, 1) == 0
    clock.now += 1
    assert passed(limits, Kind.VALIDATE, ONE, 1) == 1


def test_who_never_fails_is_told_nothing_of_failures() -> None:
    limits = limits_of(failures="10/minute")
    assert limits.take(Kind.VALIDATE, ONE) == ()
    limits.failed(OTHER.identity)
    assert limits.take(Kind.VALIDATE, ONE) == ()


def test_guesses_are_counted_by_address() -> None:
    """And hold back nothing but guesses."""
    clock = Clock()
    limits = limits_of(clock, guesses="3/minute")
    for _ in range(3):
        limits.record_failed_auth("192.0.2.1")
    with pytest.raises(RateLimitedError) as error:
        limits.record_failed_auth("192.0.2.1")
    limits.record_failed_auth("192.0.2.2")
    limits.take(Kind.VALIDATE, ONE)
    clock.now += error.value.retry_after
    limits.record_failed_auth("192.0.2.1")


def test_a_clock_that_is_set_moves_no_window(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threat 23: neither a caller held back for a year, nor a limit that is forgotten."""
    limits = RateLimits({Kind.VALIDATE: (Rate(5, 3_600),)})
    assert passed(limits, Kind.VALIDATE, ONE, 3) == 3
    now = time.time()
    for jump in (-1e9, 1e9, -86_400.0):
        monkeypatch.setattr(time, "time", lambda jump=jump: now + jump)
        assert limits.quotas(Kind.VALIDATE, ONE)[0].remaining == 2
    assert passed(limits, Kind.VALIDATE, ONE, 10) == 2


@pytest.mark.parametrize(
    ("flags", "limited"),
    [
        ({}, False),
        ({"access": "open"}, False),
        ({"host": "::1"}, False),
        ({"trusted_proxies": "127.0.0.1"}, True),
        ({"access": "keys"}, True),
        ({"host": "0.0.0.0", "access": "open"}, True),
        ({"host": "203.0.113.5", "access": "open"}, True),
    ],
)
def test_only_a_laptop_has_no_limits_unless_asked(
    flags: dict[str, str], limited: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Threat 23: on a public address nothing is unlimited by accident."""
    monkeypatch.chdir(tmp_path)
    limits = make_rate_limits(load_settings(flags, {}))
    taken = (Kind.PROVISION, Kind.VALIDATE, Kind.ADMIN)
    assert {bool(limits.quotas(kind, ONE)) for kind in taken} == {limited}
    assert limits.limits_failures is limited
    quotas = limits.quotas(Kind.VALIDATE, ONE)
    expected = parse_rates(DEFAULTS[Kind.VALIDATE]) if limited else ()
    assert tuple(quota.rate for quota in quotas if quota.policy == "validate") == expected


def test_settings_beat_the_defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    environ = {"SMA_RATE_ADMIN": "7/hour", "SMA_RATE_VALIDATE": "none", "SMA_HOST": "0.0.0.0"}
    limits = make_rate_limits(load_settings({"access": "open"}, environ))
    assert [quota.rate for quota in limits.quotas(Kind.ADMIN, ONE)] == [Rate(7, 3_600)]
    assert limits.quotas(Kind.VALIDATE, ONE) == ()
    assert limits.quotas(Kind.PROVISION, ONE)[-1].rate == Rate(600, 60)
