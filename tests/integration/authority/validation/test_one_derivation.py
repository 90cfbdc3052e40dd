"""A token passes under one key derivation only, whoever asks, in whatever order, on any process."""

import threading
from collections import Counter
from dataclasses import dataclass

import pytest

from birthmark_sma.authority.access.caller import Caller
from birthmark_sma.authority.authority import Authority
from birthmark_sma.config import Settings
from birthmark_sma.protocol.camera_token import CameraToken
from birthmark_sma.protocol.key_derivation import NORMATIVE, PUBLISHED_CLIENTS, Derivation
from birthmark_sma.protocol.replay import Repeat
from birthmark_sma.protocol.verdict import Reason
from tests.support.authorities import opened, request_for, rows_of
from tests.support.cameras.colliding_tokens import collide_for
from tests.support.devices.acts import reinstate_device, revoke_device, suspend_device

CALLER = Caller("192.0.2.7")
GENUINE, OTHER = Reason.GENUINE, Reason.OTHER_DERIVATION


@dataclass
class Pair:
    """A token of two devices, and the serials of these."""

    authority: Authority
    token: CameraToken
    serials: dict[str, str]

    def ask(
        self, derivation: Derivation, authority: Authority | None = None
    ) -> tuple[Reason, Repeat | None]:
        """Validate the token."""
        validator = (authority or self.authority).validator
        validation = validator.submit(self.token, CALLER, derivation).result(30)
        return validation.reason, validation.repeat


def new_pair(authority: Authority) -> Pair:
    """Provision two devices whose NUC hashes are in one token."""
    serials: dict[str, str] = {}
    count = 0

    def register(nuc_hash: bytes, derivation: str) -> list[int]:
        nonlocal count
        count += 1
        serials[derivation] = f"{derivation}-{count}-{nuc_hash.hex()[:8]}"
        request = request_for(serials[derivation], nuc_hash=nuc_hash)
        return list(authority.provisioner.provision_device(request).table_assignments)

    made = collide_for(authority.table_cache.keys.current[2].master_key, 2, register)
    return Pair(authority, made.token, serials)


@pytest.fixture
def pair(authority: Authority) -> Pair:
    """A token of two devices."""
    return new_pair(authority)


ORDERS = pytest.mark.parametrize(
    ("first", "second", "device"),
    [(NORMATIVE, PUBLISHED_CLIENTS, "normative"), (PUBLISHED_CLIENTS, NORMATIVE, "published")],
    ids=["normative first", "published first"],
)


@ORDERS
def test_what_passed_is_fail_at_the_other_address(
    pair: Pair, settings: Settings, first: Derivation, second: Derivation, device: str
) -> None:
    """Threat 42: also once the device that it passed for is revoked, and on another process."""
    assert pair.ask(first) == (GENUINE, None)
    assert pair.ask(second) == (OTHER, None)
    assert pair.ask(first) == (GENUINE, Repeat.REPLAYED)
    revoke_device(pair.authority.database, pair.serials[device], "key_compromise")
    with opened(settings) as other:
        assert pair.ask(second, other) == (OTHER, Repeat.REPLAYED)
        assert pair.ask(first, other) == (Reason.DEVICE_REVOKED, Repeat.REPLAYED)
    rows = rows_of(
        pair.authority.database,
        "SELECT validation_result, reason FROM validation_history WHERE reason = :reason",
        reason="other_derivation",
    )
    assert rows == [("FAIL", "other_derivation")] * 2


@ORDERS
def test_a_fail_decides_nothing(
    pair: Pair, first: Derivation, second: Derivation, device: str
) -> None:
    """Threat 42: the token of a suspended device passes for the other one; then for that alone."""
    suspend_device(pair.authority.database, pair.serials[device])
    assert pair.ask(first) == (Reason.DEVICE_SUSPENDED, None)
    assert pair.ask(second) == (GENUINE, None)
    reinstate_device(pair.authority.database, pair.serials[device])
    assert pair.ask(first) == (OTHER, Repeat.REPLAYED)
    assert pair.ask(second) == (GENUINE, Repeat.REPLAYED)


@ORDERS
def test_in_its_own_right_after_a_fail(
    pair: Pair, first: Derivation, second: Derivation, device: str
) -> None:
    """Threat 42: a token that failed and passes later has passed from then on."""
    suspend_device(pair.authority.database, pair.serials[device])
    assert pair.ask(first) == (Reason.DEVICE_SUSPENDED, None)
    reinstate_device(pair.authority.database, pair.serials[device])
    assert pair.ask(first) == (GENUINE, Repeat.REPLAYED)
    assert pair.ask(second) == (OTHER, None)


def test_at_two_processes_at_once(authority: Authority, settings: Settings) -> None:
    """Threat 42: exactly one of them says PASS, and says so again."""
    pairs = [new_pair(authority) for _ in range(4)]
    with opened(settings) as other:
        for pair in pairs:
            start = threading.Barrier(2)
            found: dict[Derivation, Reason] = {}

            def ask(derivation: Derivation, at: Authority, pair: Pair = pair) -> None:
                start.wait(30)  # noqa: B023  joined within the turn
                found[derivation] = pair.ask(derivation, at)[0]  # noqa: B023

            threads = [
                threading.Thread(target=ask, args=arguments)
                for arguments in ((NORMATIVE, authority), (PUBLISHED_CLIENTS, other))
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(30)
            assert Counter(found.values()) == {GENUINE: 1, OTHER: 1}
            assert {each: pair.ask(each)[0] for each in found} == found
