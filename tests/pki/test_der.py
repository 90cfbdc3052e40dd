"""The frame of a certificate, byte for byte as the library's own builder makes it."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509

from birthmark_sma.pki import certificates, der, profiles
from birthmark_sma.pki.keys.ca_keys import CaKeyType, Signer
from birthmark_sma.pki.keys.key_policy import check_key
from birthmark_sma.pki.profile_check import Prepared
from tests.support.pki.chains import (
    DEVICE_KEY_KINDS,
    DEVICE_SERIALS,
    NOW,
    PUBLICATIONS,
    ca,
    certificate_serial,
    device_key,
)


def built(prepared: Prepared, signer: Signer) -> bytes:
    """Return the TBSCertificate that the library's builder makes."""
    builder = (
        x509.CertificateBuilder()
        .subject_name(prepared.subject)
        .issuer_name(prepared.issuer)
        .public_key(prepared.public_key)
        .serial_number(prepared.serial_number)
        .not_valid_before(prepared.not_before)
        .not_valid_after(prepared.not_after)
    )
    for extension in prepared.extensions:
        builder = builder.add_extension(extension, critical=extension.oid in profiles.CRITICAL)
    return builder.sign(signer.key, signer.hash_algorithm).tbs_certificate_bytes


def prepared_device(
    kind: str = "ec-p256", serial: str = "plain-name", publication: str = "published"
) -> Prepared:
    """Return a device's certificate, prepared."""
    return certificates.prepare_device(
        check_key(device_key(kind).public_key()),
        DEVICE_SERIALS[serial],
        issuer=ca().intermediate,
        now=NOW,
        serial_number=certificate_serial(kind + serial),
        publication=PUBLICATIONS[publication],
    )


@pytest.mark.parametrize("publication", PUBLICATIONS)
@pytest.mark.parametrize("serial", DEVICE_SERIALS)
@pytest.mark.parametrize("kind", DEVICE_KEY_KINDS)
def test_devices(kind: str, serial: str, publication: str) -> None:
    """Every kind of key, serial and extension."""
    prepared = prepared_device(kind, serial, publication)
    signer = ca().signer
    tbs = der.tbs_certificate(prepared, signer.signature_algorithm)
    assert tbs == built(prepared, signer)
    signed = certificates.sign(prepared, signer, issuer=ca().intermediate)
    assert signed.tbs_certificate_bytes == tbs


@pytest.mark.parametrize("key_type", CaKeyType)
def test_cas(key_type: CaKeyType) -> None:
    """Every kind of CA key; what it signs verifies under it."""
    signer = ca(key_type).root_signer
    prepared = certificates.prepare_root(
        signer.public_key, now=NOW, serial_number=certificate_serial("root")
    )
    assert der.tbs_certificate(prepared, signer.signature_algorithm) == built(prepared, signer)
    root = certificates.sign(prepared, signer)
    root.verify_directly_issued_by(root)
    ca(key_type).intermediate.verify_directly_issued_by(ca(key_type).root)


@pytest.mark.parametrize("bits", [64, 65, 71, 72, 127, 128, 158, 159])
def test_serial_numbers_stay_positive(bits: int) -> None:
    """With and without a leading zero, which keeps the first bit from being a sign."""
    for number in (1 << (bits - 1), (1 << bits) - 1):
        prepared = replace(prepared_device(), serial_number=number)
        tbs = der.tbs_certificate(prepared, ca().signer.signature_algorithm)
        assert tbs == built(prepared, ca().signer)


@pytest.mark.parametrize("year", [1999, 2000, 2049, 2050, 2100])
def test_times_of_either_form(year: int) -> None:
    """Two digits of the year until 2049, four from 2050 (RFC 5280, section 4.1.2.5)."""
    start = datetime(year, 1, 2, 3, 4, 5, tzinfo=UTC)
    prepared = replace(prepared_device(), not_before=start, not_after=start + timedelta(days=360))
    tbs = der.tbs_certificate(prepared, ca().signer.signature_algorithm)
    assert tbs == built(prepared, ca().signer)
