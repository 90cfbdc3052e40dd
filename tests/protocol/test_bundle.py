"""Bundles: one spelling, and a canonical form that any language can write."""

import hashlib
import json
import re
import textwrap
from base64 import b64encode
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, x25519
from cryptography.hazmat.primitives.asymmetric.utils import (
    decode_dss_signature,
    encode_dss_signature,
)
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st

from birthmark_sma.errors import BundleError, BundleSignatureError, MalformedBundleError
from birthmark_sma.protocol.bundle import (
    MAX_BUNDLE_BYTES,
    SIGNING_PREFIX,
    Bundle,
    UnsignedBundle,
    bundle_from_dict,
    parse_bundle,
)
from birthmark_sma.protocol.bundle_signature import sign_bundle, verify_signature
from birthmark_sma.protocol.camera_token import CameraToken
from tests.support.pki.chains import DEVICE_KEY_KINDS, device_key, sound_chain

DER = b"\x30\x82\xff"
BASE64 = "MIL/"
CONTENT = UnsignedBundle(
    image_hash=hashlib.sha256(b"a picture").digest(),
    camera_token=CameraToken(bytes(range(48)), 42, 234, bytes(range(12))),
    device_certificate_chain=(DER, DER),
    captured_at=datetime(2026, 1, 31, 12, 0, 0, 5, tzinfo=UTC),
)
BUNDLE = Bundle(CONTENT, b"a signature")


def fields() -> dict[str, Any]:
    """The fields of a well-formed bundle, to be spoilt."""
    made: dict[str, Any] = json.loads(BUNDLE.to_json())
    return made


def test_what_is_signed() -> None:
    """The prefix and the canonical JSON, written here by hand (RFC 8785)."""
    token = f'{{"encrypted_nuc_hash":"{bytes(range(48)).hex()}","key_index":234,'
    token += f'"nonce":"{bytes(range(12)).hex()}","table_id":42}}'
    expected = '{"camera_token":' + token
    expected += ',"captured_at":"2026-01-31T12:00:00.000005Z"'
    expected += ',"device_certificate_chain":["MIL/","MIL/"]'
    expected += f',"image_hash":"{hashlib.sha256(b"a picture").hexdigest()}","version":1}}'
    assert CONTENT.signed_bytes() == b"birthmark-bundle-v1\0" + expected.encode()


def test_a_bundle_comes_back_as_it_was() -> None:
    assert parse_bundle(BUNDLE.to_json()) == BUNDLE
    assert parse_bundle(BUNDLE.to_json().decode()) == BUNDLE
    spaced = json.dumps(dict(reversed(fields().items())), indent=2)
    assert parse_bundle(spaced) == BUNDLE


def test_escapes_in_texts_are_left_to_json() -> None:
    """Some libraries write a solidus as \\/, or = as an escape: the values are the same."""
    escaped = BUNDLE.to_json().replace(b"=", b"\\u003d").replace(b'"version"', b'"\\u0076ersion"')
    escaped = escaped.replace(b"/", b"\\/")
    assert parse_bundle(escaped) == BUNDLE


def test_a_bundle_is_known_by_what_was_signed() -> None:
    """Who carries an ECDSA signature can make another of it; the bundle is the same one."""
    key = device_key("ec-p256")
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    signed = sign_bundle(CONTENT, key)
    order = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551  # of P-256
    r, s = decode_dss_signature(signed.signature)
    other = Bundle(CONTENT, encode_dss_signature(r, order - s))
    verify_signature(other, key.public_key())
    assert other.to_json() != signed.to_json()
    assert other.bundle_id == signed.bundle_id == hashlib.sha256(CONTENT.signed_bytes()).hexdigest()
    later = replace(CONTENT, captured_at=CONTENT.captured_at + timedelta(microseconds=1))
    assert Bundle(later, b"a signature").bundle_id != signed.bundle_id


SPOILERS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "a field less": lambda f: f.pop("version"),
    "a field more": lambda f: f.update(more=1),
    "another version": lambda f: f.update(version=2),
    "version true": lambda f: f.update(version=True),
    "version 1.0": lambda f: f.update(version=1.0),
    "version in quotes": lambda f: f.update(version="1"),
    "upper case": lambda f: f.update(image_hash=f["image_hash"].upper()),
    "a short hash": lambda f: f.update(image_hash="00"),
    "a hash with a newline": lambda f: f.update(image_hash=f["image_hash"] + "\n"),
    "a number for a hash": lambda f: f.update(image_hash=7),
    "another's digits": lambda f: f.update(image_hash="\u0660" * 64),
    "no token": lambda f: f.update(camera_token=None),
    "a token field more": lambda f: f["camera_token"].update(more=1),
    "a token field less": lambda f: f["camera_token"].pop("nonce"),
    "a table in quotes": lambda f: f["camera_token"].update(table_id="42"),
    "a table that is true": lambda f: f["camera_token"].update(table_id=True),
    "a table below zero": lambda f: f["camera_token"].update(table_id=-1),
    "a table beyond the wire": lambda f: f["camera_token"].update(table_id=2**31),
    "a 64-byte nonce": lambda f: f["camera_token"].update(nonce="00" * 64),
    "one certificate": lambda f: f.update(device_certificate_chain=[BASE64]),
    "three certificates": lambda f: f.update(device_certificate_chain=[BASE64] * 3),
    "a text for a chain": lambda f: f.update(device_certificate_chain=BASE64),
    "numbers for a chain": lambda f: f.update(device_certificate_chain=[1, 2]),
    "an empty certificate": lambda f: f.update(device_certificate_chain=["", BASE64]),
    "no base64": lambda f: f.update(device_certificate_chain=["MIL", BASE64]),
    "two in one": lambda f: f.update(device_certificate_chain=["MIL/MA==MIL/", BASE64]),
    "loose bits": lambda f: f.update(device_certificate_chain=["MB==", BASE64]),
    "a long certificate": lambda f: f.update(
        device_certificate_chain=[b64encode(bytes(6_145)).decode(), BASE64]
    ),
    "a local time": lambda f: f.update(captured_at="2026-01-31T12:00:00.000000+01:00"),
    "milliseconds": lambda f: f.update(captured_at="2026-01-31T12:00:00.000Z"),
    "no such day": lambda f: f.update(captured_at="2026-02-30T12:00:00.000000Z"),
    "a leap second": lambda f: f.update(captured_at="2026-12-31T23:59:60.000000Z"),
    "a space for T": lambda f: f.update(captured_at="2026-01-31 12:00:00.000000Z"),
    "no time": lambda f: f.update(captured_at=0),
    "no signature": lambda f: f.update(signature=""),
    "signature unpadded": lambda f: f.update(signature="YQ"),
    "signature with loose bits": lambda f: f.update(signature="YR=="),
    "signature for URLs": lambda f: f.update(signature="_-8="),
    "signature with spaces": lambda f: f.update(signature="YQ= ="),
    "signature beyond ASCII": lambda f: f.update(signature="ÿÿÿÿ"),
    "a long signature": lambda f: f.update(signature=b64encode(bytes(513)).decode()),
    "a number for a signature": lambda f: f.update(signature=1),
}


@pytest.mark.parametrize("name", SPOILERS)
def test_another_spelling_is_refused(name: str) -> None:
    """Two texts that differ in a value are never one bundle."""
    spoilt = fields()
    SPOILERS[name](spoilt)
    with pytest.raises(MalformedBundleError) as refused:
        parse_bundle(json.dumps(spoilt))
    assert str(refused.value).endswith(".")


CERTIFICATE = b64encode(sound_chain().leaf.public_bytes(Encoding.DER)).decode()
LINES = textwrap.wrap(CERTIFICATE, 76)


def in_pem(*lines: str, end: str = "\n") -> str:
    return end.join(("-----BEGIN CERTIFICATE-----", *lines, "-----END CERTIFICATE-----", ""))


SPELLINGS = {
    "PEM": (in_pem(*textwrap.wrap(CERTIFICATE, 64)), "not PEM"),
    "PEM with CRLF": (in_pem(*textwrap.wrap(CERTIFICATE, 64), end="\r\n"), "not PEM"),
    "PEM of 76 columns": (in_pem(*LINES), "not PEM"),
    "PEM on one line": (in_pem(CERTIFICATE), "not PEM"),
    "PEM after a newline": ("\n" + in_pem(*LINES), "not PEM"),
    "Android's Base64.DEFAULT": ("\n".join([*LINES, ""]), "MIME"),
    "Java's MIME encoder": ("\r\n".join(LINES), "MIME"),
    "a trailing blank": (CERTIFICATE + " ", "white space"),
    "base64url": (CERTIFICATE.replace("+", "-").replace("/", "_"), "URLs"),
    "without padding": ("YWI", "with padding"),
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_a_refusal_names_the_field_and_the_spelling(name: str) -> None:
    """What Android and Java write by default is recognised, so that nobody has to guess."""
    spelling, named = SPELLINGS[name]
    for number, chain in enumerate(([spelling, CERTIFICATE], [CERTIFICATE, spelling])):
        with pytest.raises(MalformedBundleError, match=re.escape(named)) as refused:
            bundle_from_dict(fields() | {"device_certificate_chain": chain})
        assert str(refused.value).startswith(
            f"device_certificate_chain[{number}] is base64 of a certificate's DER"
        )
    sound = fields() | {"device_certificate_chain": [CERTIFICATE, CERTIFICATE]}
    assert json.loads(bundle_from_dict(sound).to_json()) == sound


def test_the_limit_counts_bytes() -> None:
    """Not characters, of which a text may have fewer."""
    text = "é" * (MAX_BUNDLE_BYTES // 2 + 1)
    for each in (text, text.encode()):
        with pytest.raises(MalformedBundleError, match="at most 32768 bytes"):
            parse_bundle(each)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"null",
        b"[]",
        b"[" * 30_000,
        b"1" * 5_000,
        b"\xff",
        "\ud800",
        b'{"version": 1, ' + BUNDLE.to_json()[1:],
        BUNDLE.to_json().replace(b'"version":1', b'"version":NaN'),
        BUNDLE.to_json() + b" " * MAX_BUNDLE_BYTES,
        BUNDLE.to_json().replace(b'"table_id":42', b'"table_id":-0'),
        BUNDLE.to_json().replace(b'"table_id":42', b'"table_id":42.0'),
        BUNDLE.to_json().replace(b'"table_id":42', b'"table_id":4.2e1'),
        BUNDLE.to_json().replace(b'"table_id":42', b'"table_id":042'),
        BUNDLE.to_json().replace(b'"version":1', b'"version":1,"\\u0076ersion":1'),
        BUNDLE.to_json().replace(b'"version":1', b'"version":1,"\\ud800":1'),
    ],
    ids=range(16),
)
def test_what_is_no_bundle(text: bytes | str) -> None:
    """Threat 21: malformed, deep and huge JSON end in one error."""
    with pytest.raises(MalformedBundleError):
        parse_bundle(text)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda e: st.lists(e) | st.dictionaries(st.sampled_from([*fields()]), e),
    )
)
def test_no_value_raises_anything_else(value: object) -> None:
    for each in (value, fields() | {"camera_token": value}, fields() | {"signature": value}):
        with pytest.raises(MalformedBundleError):
            bundle_from_dict(each)


@given(st.datetimes(timezones=st.just(UTC)))
def test_every_time_comes_back(captured_at: datetime) -> None:
    content = UnsignedBundle(
        CONTENT.image_hash, CONTENT.camera_token, CONTENT.device_certificate_chain, captured_at
    )
    assert parse_bundle(Bundle(content, b"x").to_json()).content == content


@pytest.mark.parametrize("zone", [None, timezone(timedelta(hours=1))])
def test_only_utc_is_a_time(zone: timezone | None) -> None:
    """Threat 25: a naive time is none."""
    naive = datetime(2026, 1, 31, tzinfo=zone)
    with pytest.raises(MalformedBundleError, match="UTC"):
        UnsignedBundle(
            CONTENT.image_hash, CONTENT.camera_token, CONTENT.device_certificate_chain, naive
        )


# --- the signature


@pytest.mark.parametrize("kind", DEVICE_KEY_KINDS)
def test_each_kind_of_device_key_signs(kind: str) -> None:
    """And no byte of what was signed can be changed."""
    key = device_key(kind)
    bundle = sign_bundle(CONTENT, key)
    verify_signature(bundle, key.public_key())
    verify_signature(parse_bundle(bundle.to_json()), key.public_key())
    later = UnsignedBundle(
        CONTENT.image_hash,
        CONTENT.camera_token,
        CONTENT.device_certificate_chain,
        CONTENT.captured_at + timedelta(microseconds=1),
    )
    with pytest.raises(BundleSignatureError):
        verify_signature(Bundle(later, bundle.signature), key.public_key())
    altered = bundle.signature[:-1] + bytes([bundle.signature[-1] ^ 1])
    with pytest.raises(BundleSignatureError):
        verify_signature(Bundle(CONTENT, altered), key.public_key())


def test_a_signature_for_another_purpose_is_none() -> None:
    """The prefix keeps apart what the same key signs elsewhere, such as in TLS or a CSR."""
    key = device_key("ec-p256")
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    unprefixed = CONTENT.signed_bytes().removeprefix(SIGNING_PREFIX)
    signature = key.sign(unprefixed, ec.ECDSA(hashes.SHA256()))
    with pytest.raises(BundleSignatureError):
        verify_signature(Bundle(CONTENT, signature), key.public_key())


@pytest.mark.parametrize("kind", ["ec-p256", "ec-p384"])
def test_r_and_s_without_der_are_recognised(kind: str) -> None:
    """Web Crypto and many smart cards write ECDSA signatures so."""
    key = device_key(kind)
    bundle = sign_bundle(CONTENT, key)
    size = key.key_size // 8  # type: ignore[union-attr]
    pair = b"".join(each.to_bytes(size, "big") for each in decode_dss_signature(bundle.signature))
    with pytest.raises(BundleSignatureError, match="P1363"):
        verify_signature(Bundle(CONTENT, pair), key.public_key())


def test_keys_that_no_device_has() -> None:
    p521 = ec.generate_private_key(ec.SECP521R1())
    with pytest.raises(BundleSignatureError, match="secp521r1"):
        sign_bundle(CONTENT, p521)
    for key in (p521.public_key(), x25519.X25519PrivateKey.generate().public_key(), None):
        with pytest.raises(BundleError):
            verify_signature(BUNDLE, key)


def test_no_repr_tells_a_token() -> None:
    """Threat 28."""
    assert bytes(range(48)).hex() not in repr(BUNDLE)
    assert "a signature" not in repr(BUNDLE)
