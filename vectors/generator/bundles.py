"""Generate bundle_signature_test.json: signatures of bundles, and whole bundles."""

import json
from base64 import b64decode, b64encode
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256, SHA384, SHA512, HashAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from birthmark_sma.protocol.bundle import (
    MAX_BUNDLE_BYTES,
    SIGNING_PREFIX,
    Bundle,
    UnsignedBundle,
)
from birthmark_sma.protocol.bundle_signature import SigningKey
from birthmark_sma.protocol.camera_token import seal
from birthmark_sma.protocol.key_derivation import derive_key
from vectors.generator import seeded_keys
from vectors.generator.authorities import NOW, authority, der, device_certificate, pem
from vectors.generator.document import Case, Document, Group, refused
from vectors.generator.seeded_keys import secret

_NOTES = {
    "AlteredBundle": "A field was changed after signing.",
    "AlteredSignature": "The signature was changed.",
    "OtherKey": "Another device's key made the signature.",
    "OtherScheme": "The right key signed, but with another hash, encoding or prefix.",
    "Malformed": "Not exactly the fields, or not in their one spelling.",
    "AmbiguousJson": "Parsers read it differently: -0, a byte order mark, a lone surrogate, a name"
    " that stands twice, NaN.",
    "Size": "A bundle has at most 32,768 bytes, white space included.",
    "Untimely": "Captured in the future, or when the certificate was not valid.",
    "OtherRoot": "The chain leads to a root that is not the pinned one.",
}
_CAPTURED = NOW - timedelta(hours=1, microseconds=-123_456)

DEVICE_KEYS: dict[str, Callable[[str], SigningKey]] = {
    "EC P-256": seeded_keys.p256,
    "EC P-384": seeded_keys.p384,
    "RSA 2048": seeded_keys.rsa_key,
    "Ed25519": seeded_keys.ed25519_key,
}


def make() -> Document:
    """Return valid signatures and bundles for each kind of key, and invalid ones."""
    groups = [_signatures(kind, key("test device")) for kind, key in DEVICE_KEYS.items()]
    return Document(
        algorithm="BirthmarkBundle-v1",
        schema="schemas/bundle_signature_test_schema.json",
        header=[
            "BundleSignature: signedBytes is what the device signs of bundle (a JSON text), and"
            " signature the signature by publicKey. The kind of the key alone decides the scheme.",
            "Bundle: the whole text as a camera sends it in UTF-8, judged at the time now against"
            " root.",
            "deviceLabel is the label from which docs/vectors.md derives the device's key: sign"
            " signedBytes with it. RSA and Ed25519 give the signature of the valid test.",
        ],
        notes=_NOTES,
        groups=[*groups, _bundles()],
    )


def _content(key: SigningKey) -> UnsignedBundle:
    ca = authority()
    leaf = device_certificate(ca, key.public_key(), "camera-7")
    token = seal(
        secret("test NUC hash"),
        key=derive_key(secret("test master key"), 234),
        table_id=42,
        key_index=234,
        nonce=secret("test nonce")[:12],
    )
    return UnsignedBundle(
        image_hash=secret("a picture"),
        camera_token=token,
        device_certificate_chain=(der(leaf), der(ca.intermediate)),
        captured_at=_CAPTURED,
    )


def sign_as_device(message: bytes, key: SigningKey, hashed: HashAlgorithm | None = None) -> bytes:
    """Sign like a device, or with the hash `hashed`. ECDSA is deterministic."""
    if isinstance(key, ec.EllipticCurvePrivateKey):
        usual = SHA384() if key.key_size == 384 else SHA256()
        return key.sign(message, ec.ECDSA(hashed or usual, deterministic_signing=True))
    if isinstance(key, rsa.RSAPrivateKey):
        return key.sign(message, padding.PKCS1v15(), hashed or SHA256())
    return key.sign(message)


def _signatures(kind: str, key: SigningKey) -> Group:
    content = _content(key)
    message = content.signed_bytes()
    good = sign_as_device(message, key)
    flipped = bytes([*good[:-1], good[-1] ^ 1])
    bad = [
        ("last bit flipped", flipped, "AlteredSignature"),
        ("cut short", good[:-1], "AlteredSignature"),
        ("one byte more", good + b"\0", "AlteredSignature"),
        (
            "another device's key",
            sign_as_device(message, DEVICE_KEYS[kind]("another test device")),
            "OtherKey",
        ),
        ("without the prefix", sign_as_device(message.partition(b"\0")[2], key), "OtherScheme"),
    ]
    if not isinstance(key, ed25519.Ed25519PrivateKey):
        bad.append(("SHA-512", sign_as_device(message, key, SHA512()), "OtherScheme"))
    if isinstance(key, ec.EllipticCurvePrivateKey):
        size = key.key_size // 8
        pair = b"".join(each.to_bytes(size, "big") for each in decode_dss_signature(good))
        bad.append(("r and s without DER", pair, "OtherScheme"))
    tests = [Case("signed", "valid", _signed(content, message, good))]
    tests += [
        Case(comment, "invalid", _signed(content, message, signature), (flag,))
        for comment, signature, flag in bad
    ]
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    shared = {
        "keyKind": kind,
        "publicKey": public.decode("ascii"),
        "deviceLabel": "test device",
    }
    return Group("BundleSignature", tests, shared)


def _signed(content: UnsignedBundle, message: bytes, signature: bytes) -> dict[str, Any]:
    return {
        "bundle": Bundle(content, signature).to_json().decode("ascii"),
        "signedBytes": message.hex(),
        "signature": signature.hex(),
    }


def _base64(value: bytes) -> str:
    return b64encode(value).decode("ascii")


def _lines(text: str, end: str = "\n", width: int = 76) -> str:
    """Break a text into lines, each with a line end, like encoders for MIME."""
    return "".join(text[at : at + width] + end for at in range(0, len(text), width))


def _in_pem(text: str, end: str = "\n", width: int = 64) -> str:
    lines = _lines(text, end, width)
    return f"-----BEGIN CERTIFICATE-----{end}{lines}-----END CERTIFICATE-----{end}"


_SPELLINGS: dict[str, Callable[[str], str]] = {
    "certificates in PEM": _in_pem,
    "certificates in PEM with CRLF": lambda text: _in_pem(text, "\r\n"),
    "certificates in lines of 76, each with a line end (Android)": _lines,
    "certificates in lines of 76 with CRLF between (Java, MIME)": lambda text: _lines(
        text, "\r\n"
    ).removesuffix("\r\n"),
    "a line end after a certificate": lambda text: text + "\n",
    "certificates in base64url": lambda text: text.replace("+", "-").replace("/", "_"),
    "certificates without padding": lambda text: text.rstrip("="),
    "bytes after a certificate": lambda text: _base64(b64decode(text) + bytes(3)),
    "two certificates in one": lambda text: _base64(2 * b64decode(text)),
    "no certificates": lambda _: "",
}


def _signed_as_it_is(fields: dict[str, Any]) -> str:
    """Return a malformed bundle with a right signature, so that only its form is wrong."""
    content = {name: value for name, value in fields.items() if name != "signature"}
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":")).encode("ascii")
    signature = sign_as_device(SIGNING_PREFIX + canonical, seeded_keys.p256("test device"))
    return _text(content | {"signature": _base64(signature)})


def _bundles() -> Group:
    key = seeded_keys.p256("test device")
    content = _content(key)
    fields = json.loads(Bundle(content, sign_as_device(content.signed_bytes(), key)).to_json())
    whole = json.dumps(fields)
    of_64_bytes = seeded_keys.ed25519_key("test device")  # which base64 pads
    padded = _content(of_64_bytes)
    padded_fields = json.loads(
        Bundle(padded, sign_as_device(padded.signed_bytes(), of_64_bytes)).to_json()
    )
    unpadded = {"signature": padded_fields["signature"].rstrip("=")}
    tests = [
        Case(comment, "valid", {"bundle": text, "deviceSerial": "camera-7"})
        for comment, text in _spelt(fields).items()
    ]
    token, chain = fields["camera_token"], fields["device_certificate_chain"]
    altered: dict[str, dict[str, Any]] = {
        "another picture": {"image_hash": secret("another picture").hex()},
        "another time": {"captured_at": "2026-11-23T11:00:00.123457Z"},
        "another key index": {"camera_token": token | {"key_index": 235}},
        "another token": {"camera_token": token | {"nonce": "00" * 12}},
    }
    malformed: dict[str, dict[str, Any]] = {
        "version 2": {"version": 2},
        "version as text": {"version": "1"},
        "hex in upper case": {"image_hash": fields["image_hash"].upper()},
        "short image hash": {"image_hash": fields["image_hash"][:-2]},
        "time without fraction": {"captured_at": "2026-11-23T11:00:00Z"},
        "time with an offset": {"captured_at": "2026-11-23T11:00:00.123456+00:00"},
        "no such day": {"captured_at": "2026-02-30T11:00:00.123456Z"},
        "one certificate": {"device_certificate_chain": chain[:1]},
        "root sent along": {"device_certificate_chain": [*chain, _base64(der(authority().root))]},
        **{
            comment: {"device_certificate_chain": [spell(each) for each in chain]}
            for comment, spell in _SPELLINGS.items()
        },
        "index below zero": {"camera_token": token | {"key_index": -1}},
        "index as text": {"camera_token": token | {"key_index": "234"}},
        "index with a fraction": {"camera_token": token | {"key_index": 234.0}},
        "one field more": {"note": ""},
        "one field more in the token": {"camera_token": token | {"image_hash": "00"}},
    }
    texts = {
        "signature without padding": _text(padded_fields | unpadded),
        "signature with line breaks": _text(fields | {"signature": _lines(fields["signature"])}),
        "empty signature": _text(fields | {"signature": ""}),
        "cut short": whole[:-1],
        "no object": "[]",
    }
    one_byte_more = _text(fields).ljust(MAX_BUNDLE_BYTES + 1)
    early, late = NOW - timedelta(days=40), NOW + timedelta(hours=2)
    foreign = authority("another authority")
    leaf = device_certificate(foreign, key.public_key(), "camera-7")
    foreign_chain = (der(leaf), der(foreign.intermediate))
    tests += refused(
        "bundle",
        [
            *((name, "AlteredBundle", _text(fields | each)) for name, each in altered.items()),
            *(
                (name, "Malformed", _signed_as_it_is(fields | each))
                for name, each in malformed.items()
            ),
            *((name, "Malformed", text) for name, text in texts.items()),
            *((name, "AmbiguousJson", text) for name, text in _ambiguous(fields).items()),
            ("32,769 bytes", "Size", one_byte_more),
            ("captured in the future", "Untimely", _resigned(captured_at=late)),
            ("captured before the certificate began", "Untimely", _resigned(captured_at=early)),
            ("another authority", "OtherRoot", _resigned(device_certificate_chain=foreign_chain)),
        ],
    )
    shared = {
        "root": pem(authority().root),
        "now": NOW.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "deviceLabel": "test device",
    }
    return Group("Bundle", tests, shared)


def _spelt(fields: dict[str, Any]) -> dict[str, str]:
    """Return texts that have the same meaning: white space, order and escapes are free."""
    text = _text(fields)
    assert "/" in text  # noqa: S101 - or the test of `\\/` would test nothing
    key_0 = {"camera_token": fields["camera_token"] | {"key_index": 0}}
    return {
        "as the library writes it": text,
        "with white space": json.dumps(fields, indent=1),
        "fields in another order": _text(dict(reversed(fields.items()))),
        r"each slash escaped as \/": text.replace("/", r"\/"),
        "letters and names escaped": text.replace("=", r"\u003d").replace('"v', r'"\u0076'),
        "key index 0": _signed_as_it_is(fields | key_0),
        "32,768 bytes": text.ljust(MAX_BUNDLE_BYTES),
    }


def _ambiguous(fields: dict[str, Any]) -> dict[str, str]:
    """Return texts that parsers read differently. The signature of what some read is right."""
    text, whole = _text(fields), json.dumps(fields)
    key_0 = {"camera_token": fields["camera_token"] | {"key_index": 0}}
    return {
        "-0 as key index": _signed_as_it_is(fields | key_0).replace(
            '"key_index":0', '"key_index":-0'
        ),
        "a byte order mark": "\ufeff" + text,
        "a lone surrogate in a name": r'{"\ud800":0,' + text[1:],
        "a lone surrogate in a text": text.replace('"image_hash":"', r'"image_hash":"\udc00'),
        "a name twice": '{"version": 1, ' + whole[1:],
        "a name twice, once escaped": r'{"\u0076ersion": 1, ' + whole[1:],
        "not a number": whole.replace('"version": 1', '"version": NaN'),
    }


def _resigned(**changes: Any) -> str:
    key = seeded_keys.p256("test device")
    content = replace(_content(key), **changes)
    return Bundle(content, sign_as_device(content.signed_bytes(), key)).to_json().decode("ascii")


def _text(fields: dict[str, Any]) -> str:
    return json.dumps(fields, separators=(",", ":"))
