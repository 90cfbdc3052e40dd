"""The delegated responders: renewed in time, and valid whatever the clock does."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509

from birthmark_sma.authority.ocsp.delegation import Delegation
from birthmark_sma.errors import IssuerExpiredError
from birthmark_sma.pki.keys.ca_keys import CaKeyType, Signer
from tests.support.pki.chains import NOW, Ca, ca, make_ca

DAY = timedelta(days=1)
NEVER = datetime.min.replace(tzinfo=UTC)
"""This machine's time, which does not count: the database's does."""


@dataclass(frozen=True)
class Issuer:
    """An issuer of device certificates."""

    name: str
    certificate: x509.Certificate
    signer: Signer


def issuer_of(authority: Ca) -> Issuer:
    """Return the intermediate of a CA."""
    return Issuer("intermediate", authority.intermediate, authority.signer)


class Scene:
    """A delegation with issuers and a clock that the test sets."""

    def __init__(self, *issuers: Issuer) -> None:
        self.now = NOW
        self.issuers: Sequence[Issuer] = issuers
        self.delegation = Delegation(lambda: self.issuers, lambda: self.now)

    def find(self, number: int = 0) -> x509.Certificate | None:
        """Return the certificate that would sign now, or None."""
        found = self.delegation.find(self.issuers[number], self.now)
        return None if found is None else found.certificate

    def renew(self) -> x509.Certificate:
        """Return the certificate that signs now, after a renewal if that is due."""
        return self.delegation.renew(self.issuers[0], self.now).certificate


@pytest.fixture
def scene() -> Scene:
    """Return a delegation with one issuer of 180 days."""
    return Scene(issuer_of(ca()))


def test_renewed_at_half_time(scene: Scene) -> None:
    """Long before the end, and not before: the key changes with the certificate."""
    assert scene.find() is None
    first = scene.renew()
    scene.now += timedelta(days=3)
    assert scene.renew() == scene.find() == first
    scene.now += timedelta(hours=12)
    assert scene.find() is None
    second = scene.renew()
    assert second.public_key() != first.public_key()
    assert second.not_valid_after_utc > first.not_valid_after_utc


@pytest.mark.parametrize("jump", [-90 * DAY, -2 * timedelta(hours=1), 8 * DAY, 365 * DAY])
def test_a_clock_that_jumps(scene: Scene, jump: timedelta) -> None:
    """At once, and also when the clock is set right again."""
    before = scene.renew()
    for now in (NOW + jump, NOW):
        scene.now = now
        assert scene.find() != before or now == NOW
        made = scene.renew()
        assert made.not_valid_before_utc <= now < made.not_valid_after_utc - timedelta(days=3)
        assert scene.find() == made


def test_the_last_days_of_the_issuer() -> None:
    """A certificate that cannot get a later end is not renewed at every request."""
    authority = make_ca(CaKeyType.EC_P256, now=NOW)
    scene = Scene(issuer_of(authority))
    end = authority.intermediate.not_valid_after_utc
    scene.now = end - DAY
    made = scene.renew()
    assert made.not_valid_after_utc == end
    scene.now = end - timedelta(hours=1)
    assert scene.find() == scene.renew() == made
    scene.now = end
    with pytest.raises(IssuerExpiredError):
        scene.renew()


def test_the_task_makes_and_forgets(scene: Scene) -> None:
    """One for each issuer; an issuer that has expired keeps none and stops no other."""
    expired = make_ca(CaKeyType.EC_P384, now=NOW - 1_820 * DAY, root_now=NOW - 1_820 * DAY)
    scene.issuers = (issuer_of(expired), scene.issuers[0])
    scene.delegation.work(NEVER)
    ends = expired.intermediate.not_valid_after_utc
    assert scene.delegation.earliest_end() == ends
    scene.now = ends + timedelta(hours=1)
    scene.delegation.work(NEVER)
    kept = scene.find(1)
    assert kept is not None
    assert scene.delegation.earliest_end() == kept.not_valid_after_utc
    scene.issuers = ()
    scene.delegation.work(NEVER)
    assert scene.delegation.earliest_end() is None
