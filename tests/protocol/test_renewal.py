"""The proof of a renewal: which bytes are signed, and that nothing in them can be changed."""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from functools import cache

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from hypothesis import given
from hypothesis import strategies as st

from birthmark_sma.errors import BundleSignatureError
from birthmark_sma.protocol.bundle_signature import SigningKey
from birthmark_sma.protocol.renewal import (
    RenewalProof,
    certificate_id,
    make_proof,
    parse_certificate_id,
    sign_renewal,
    verify_renewal,
)

AT = datetime(2028, 3, 22, 17, 11, 36, 476_000, tzinfo=UTC)
PROOF = make_proof(b"certificate", b"csr", b"recipient", requested_at=AT, supersede=False)
KINDS: dict[str, Callable[[], SigningKey]] = {
    "P-256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "P-384": lambda: ec.generate_private_key(ec.SECP384R1()),
    "RSA": lambda: rsa.generate_private_key(65537, 2048),
    "Ed25519": ed25519.Ed25519PrivateKey.generate,
}


@cache
def key_of(kind: str) -> SigningKey:
    """A key of a kind, the same for all tests."""
    return KINDS[kind]()


def test_the_signed_bytes_are_the_prefix_and_canonical_json() -> None:
    proof = RenewalProof("aa" * 32, "bb" * 32, None, AT, supersede=True)
    assert proof.signed_bytes() == (
        b"birthmark-renew-v1\0"
        b'{"certificate_sha256":"' + b"aa" * 32 + b'","csr_sha256":"' + b"bb" * 32 + b'",'
        b'"recipient_key_sha256":null,"requested_at":"2028-03-22T17:11:36.476000Z",'
        b'"supersede":true}'
    )


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_key_signs(kind: str) -> None:
    key = key_of(kind)
    verify_renewal(PROOF, sign_renewal(PROOF, key), key.public_key())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "changed",
    [
        replace(PROOF, supersede=True),
        replace(PROOF, recipient_key_sha256=None),
        replace(PROOF, recipient_key_sha256="00" * 32),
        replace(PROOF, csr_sha256="00" * 32),
        replace(PROOF, certificate_sha256="00" * 32),
        replace(PROOF, requested_at=AT.replace(microsecond=0)),
    ],
)
def test_a_relay_can_change_nothing(kind: str, changed: RenewalProof) -> None:
    """Threat 41: neither the recipient key nor the choice to supersede, nor anything else."""
    key = key_of(kind)
    with pytest.raises(BundleSignatureError):
        verify_renewal(changed, sign_renewal(PROOF, key), key.public_key())


def test_the_error_names_the_form_of_webcrypto() -> None:
    with pytest.raises(BundleSignatureError, match="P1363"):
        verify_renewal(PROOF, bytes(64), key_of("P-256").public_key())


# RFC 9773, section 4.1.
RFC_ID = "aYhba4dGQEHhs3uEe6CuLN4ByNQ.AIdlQyE"
RFC_KEY = bytes.fromhex("69885b6b87464041e1b37b847ba0ae2cde01c8d4")


def test_the_id_is_that_of_the_rfc() -> None:
    assert certificate_id(RFC_KEY, 0x87654321) == RFC_ID
    assert parse_certificate_id(RFC_ID) == (RFC_KEY, 0x87654321)


@given(st.binary(min_size=1, max_size=64), st.integers(1, 2**159 - 1))
def test_each_id_is_read_back(identifier: bytes, serial_number: int) -> None:
    assert parse_certificate_id(certificate_id(identifier, serial_number)) == (
        identifier,
        serial_number,
    )


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        "aYhba4dGQEHhs3uEe6CuLN4ByNQ",
        "aYhba4dGQEHhs3uEe6CuLN4ByNQ.",
        "aYhba4dGQEHhs3uEe6CuLN4ByNQ.h2VDIQ",  # negative: no zero octet before the first bit
        "aYhba4dGQEHhs3uEe6CuLN4ByNQ.AA",  # zero
        "aYhba4dGQEHhs3uEe6CuLN4ByNQ.AAE",  # not the shortest form of 1
        "aYhba4dGQEHhs3uEe6CuLN4ByNQ=.AIdlQyE",
        "aYhba4dGQEHhs3uEe6CuLN4ByNR.AIdlQyE",  # unused bits
        "aYhba4dGQEHhs3uEe6CuLN4ByNQ.AIdlQyE=",
        "aYhba4dGQEHhs3uEe6CuLN4ByNQ.AIdlQyE.",
        "aYhba4dGQEHhs3uEe6CuLN4ByNQ. AIdlQyE",
        "a.b.c",
        "é.AIdlQyE",
    ],
)
def test_no_other_spelling_is_read(text: str) -> None:
    with pytest.raises(ValueError, match="not the id"):
        parse_certificate_id(text)


@given(st.text(max_size=40))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        identifier, serial_number = parse_certificate_id(text)
    except ValueError:
        return
    assert certificate_id(identifier, serial_number) == text
