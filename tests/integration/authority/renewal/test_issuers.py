"""Renewal under several intermediates: the active one signs, whatever became of the old one."""

from collections.abc import Callable
from datetime import datetime, timedelta

import pytest
from cryptography import x509

from birthmark_sma.authority.authority import Authority
from birthmark_sma.authority.ca.issuers import Issuer
from birthmark_sma.authority.ca.succession import Successions
from birthmark_sma.authority.provisioning.issuance import CheckedRequest
from birthmark_sma.authority.renewal import orders
from birthmark_sma.authority.renewal.windows import RenewalCriteria
from tests.support.authorities import rows_of
from tests.support.cameras.renewed import new_device, renew
from tests.support.devices.actors import ACTOR


def generation(authority: Authority) -> int:
    """Return the number of changes that made a revocation list due."""
    [(number,)] = rows_of(authority.database, "SELECT revocation_generation FROM authority")
    return int(number)


def rotate(successions: Successions) -> None:
    """Let a new intermediate take the place of the active one."""
    successions.rotate()


def compromise(successions: Successions) -> None:
    """Put the active intermediate on the list of its root."""
    successions.compromise("intermediate")


@pytest.mark.parametrize("act", [rotate, compromise])
def test_the_active_intermediate_signs(
    authority: Authority, act: Callable[[Successions], None]
) -> None:
    """The register, the chain of the response and the certificate name the same issuer."""
    device = new_device(authority, "camera")
    act(Successions(authority.database, authority.settings, actor=ACTOR))
    request = device.request()
    for is_repetition in (False, True):
        renewed = renew(authority, request)
        assert renewed.is_repetition == is_repetition
        leaf, issuer, root = (
            x509.load_pem_x509_certificate(pem.encode())
            for pem in (renewed.device_certificate, *renewed.certificate_chain)
        )
        leaf.verify_directly_issued_by(issuer)
        issuer.verify_directly_issued_by(root)
        assert issuer == authority.issuers.active.certificate
    assert rows_of(authority.database, "SELECT certificate_issuer FROM registered_devices") == [
        ("intermediate-2",)
    ]
    assert rows_of(authority.database, "SELECT certificate_issuer FROM earlier_certificates") == [
        ("intermediate",)
    ]


@pytest.mark.parametrize("act", [rotate, compromise])
def test_the_progress_of_an_order_for_an_intermediate(
    authority: Authority, act: Callable[[Successions], None]
) -> None:
    """The new certificates are under another one. Only devices that the order names count."""
    device, other = new_device(authority, "camera"), new_device(authority, "sleeping")
    act(Successions(authority.database, authority.settings, actor=ACTOR))
    unnamed = new_device(authority, "later")
    criteria = RenewalCriteria(certificate_issuer="intermediate")
    given = orders.give_order(authority.database, criteria, timedelta(days=1), ACTOR)

    def progress() -> tuple[int, int]:
        with authority.database.read() as connection:
            read = orders.read_progress(connection, given)
        return read.renewed, read.left

    assert (given.matched, *progress()) == (2, 0, 2)
    renew(authority, device.request())
    renew(authority, unnamed.request())
    assert progress() == (1, 1)
    renew(authority, other.request())
    assert progress() == (2, 0)


def test_a_repetition_gets_the_chain_of_its_certificate(authority: Authority) -> None:
    """The intermediate that signed it is not the active one any more."""
    device = new_device(authority, "camera")
    request = device.request()
    first = renew(authority, request)
    Successions(authority.database, authority.settings, actor=ACTOR).rotate()
    new_device(authority, "another")  # notices the rotation
    again = renew(authority, request)
    assert again.is_repetition
    assert again.device_certificate == first.device_certificate
    assert again.certificate_chain == first.certificate_chain


def test_an_intermediate_that_is_replaced_before_the_commit(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it signed is not registered, and the certificate is made again."""
    device = new_device(authority, "camera")
    maker = authority.renewer._maker
    issue = maker.issue_certificate
    issuers: list[Issuer] = []

    def issue_and_rotate(
        checked: CheckedRequest, issuer: Issuer, now: datetime
    ) -> x509.Certificate:
        certificate = issue(checked, issuer, now)
        if not issuers:
            Successions(authority.database, authority.settings, actor=ACTOR).rotate()
        issuers.append(issuer)
        return certificate

    monkeypatch.setattr(maker, "issue_certificate", issue_and_rotate)
    renewed = renew(authority, device.request())
    assert [each.name for each in issuers] == ["intermediate", "intermediate-2"]
    assert renewed.certificate_chain == authority.issuers.active.chain
    [(count,)] = rows_of(authority.database, "SELECT count(*) FROM earlier_certificates")
    assert count == 1


def test_a_list_is_due_if_a_renewal_revokes(authority: Authority) -> None:
    """A renewal that leaves the old certificate valid makes none due, nor does a repetition."""
    device = new_device(authority, "camera")
    before = generation(authority)
    renew(authority, device.request())
    assert generation(authority) == before
    other = new_device(authority, "another")
    request = other.request(supersede=True)
    for _ in range(2):
        renew(authority, request)
        assert generation(authority) == before + 1
