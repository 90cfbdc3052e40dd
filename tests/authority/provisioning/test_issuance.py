"""Candidates: what checking a request costs others."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from birthmark_sma.authority.provisioning import issuance
from birthmark_sma.pki.keys.key_policy import check_key
from tests.support.pki.chains import device_key


def test_one_rsa_key_is_checked_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """An event loop waits for its turn behind one thread, and not behind one for each request."""
    under_way, most, breaths = 0, 0, 0

    def counted(_modulus: int, breathe: Callable[[], None]) -> bool:
        nonlocal under_way, most, breaths
        under_way += 1
        most = max(most, under_way)
        time.sleep(0.001)
        breathe()
        breaths += 1
        under_way -= 1
        return False

    monkeypatch.setattr("birthmark_sma.pki.keys.rsa_weaknesses.is_prime", counted)
    key = check_key(device_key("rsa-2048").public_key())
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(issuance.check_is_secret, [key] * 16))
    assert (most, breaths) == (1, 16)
