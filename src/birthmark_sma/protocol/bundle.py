"""Build and parse bundles: the message that a camera sends to an aggregation server per picture.

An `UnsignedBundle` or a `Bundle` exists only if it is well-formed; otherwise its constructor raises
MalformedBundleError. Each value has exactly one encoding: `parse_bundle` accepts only what
`to_json` could have written, except for white space, the order of the fields and JSON escapes in
strings. A well-formed bundle may still have a wrong signature or untrusted certificates: this
module verifies neither.

The signature (`bundle_signature`) covers `signed_bytes()`: a prefix that separates bundles from
every other kind of message that the key signs, then all other fields as canonical JSON (RFC 8785).
"""

import hashlib
import json
import re
from base64 import b64decode, b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, NoReturn

from birthmark_sma.errors import MalformedBundleError, MalformedCameraTokenError
from birthmark_sma.protocol.camera_token import (
    ENCRYPTED_NUC_HASH_BYTES,
    NONCE_BYTES,
    CameraToken,
    to_wire,
)
from birthmark_sma.protocol.strict_json import parse_json

VERSION = 1
IMAGE_HASH_BYTES = 32
SIGNING_PREFIX = b"birthmark-bundle-v1\0"
CHAIN_LENGTH = 2
"""The device certificate, then the intermediate certificate.

The root is left out: verifiers pin it, so a root from the sender would prove nothing.
"""
MAX_CERTIFICATE_BYTES = 6_144
MAX_SIGNATURE_BYTES = 512
"""The length of an RSA-4096 signature, the longest that an accepted device key makes."""
MAX_BUNDLE_BYTES = 32_768

# `bundle_from_dict` accepts exactly these fields: an unknown field is an error.
_FIELDS = frozenset(
    {
        "version",
        "image_hash",
        "camera_token",
        "device_certificate_chain",
        "captured_at",
        "signature",
    }
)
_TOKEN_FIELDS = frozenset({"encrypted_nuc_hash", "table_id", "key_index", "nonce"})


@dataclass(frozen=True, slots=True)
class UnsignedBundle:
    """The fields of a bundle, without the signature.

    `image_hash` is the SHA-256 of the picture file's bytes (32 bytes). `device_certificate_chain`
    has the device certificate and then the intermediate certificate, both in DER. `captured_at` is
    the time of the device's own clock, in UTC.
    """

    image_hash: bytes
    camera_token: CameraToken = field(repr=False)
    device_certificate_chain: tuple[bytes, ...]
    captured_at: datetime

    def __post_init__(self) -> None:
        if len(self.image_hash) != IMAGE_HASH_BYTES:
            _refuse(f"image_hash has {IMAGE_HASH_BYTES} bytes, not {len(self.image_hash)}")
        if len(self.device_certificate_chain) != CHAIN_LENGTH:
            _refuse("device_certificate_chain is the device's certificate, then the intermediate's")
        if not all(1 <= len(der) <= MAX_CERTIFICATE_BYTES for der in self.device_certificate_chain):
            _refuse(
                "device_certificate_chain has certificates in DER, of at most"
                f" {MAX_CERTIFICATE_BYTES} bytes each"
            )
        if self.captured_at.utcoffset() != timedelta(0):
            _refuse("captured_at is in UTC")

    def signed_bytes(self) -> bytes:
        """Return the bytes to sign: the prefix, then canonical JSON (RFC 8785, section 3.2)."""
        return SIGNING_PREFIX + _canonical(self.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a dictionary that `json.dumps` accepts."""
        return {
            "version": VERSION,
            "image_hash": self.image_hash.hex(),
            "camera_token": to_wire(self.camera_token),
            "device_certificate_chain": [_as_base64(der) for der in self.device_certificate_chain],
            "captured_at": format_time(self.captured_at),
        }


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle and the device's signature over its content."""

    content: UnsignedBundle
    signature: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if not 1 <= len(self.signature) <= MAX_SIGNATURE_BYTES:
            _refuse(f"signature has 1 to {MAX_SIGNATURE_BYTES} bytes, not {len(self.signature)}")

    @property
    def bundle_id(self) -> str:
        """Return the id of the bundle: the SHA-256 of the signed bytes, in hex.

        The id does not cover the signature. Anyone can turn an ECDSA signature into a second valid
        one without the key, and the same bundle would then count as a new one.
        """
        return hashlib.sha256(self.content.signed_bytes()).hexdigest()

    def to_json(self) -> bytes:
        """Return the bundle as canonical JSON, so that equal bundles have equal bytes."""
        return _canonical(self.content.to_dict() | {"signature": _as_base64(self.signature)})


def parse_bundle(text: bytes | str) -> Bundle:
    """Parse a bundle from JSON text.

    Raises MalformedBundleError with the reason, also for a text of more than 32,768 bytes.
    """
    try:
        encoded = text.encode("utf-8") if isinstance(text, str) else text
        if len(encoded) > MAX_BUNDLE_BYTES:
            _refuse(f"A bundle has at most {MAX_BUNDLE_BYTES} bytes")
        value = parse_json(encoded)
    except ValueError:
        _refuse("A bundle is JSON in UTF-8 with one meaning, and has each name once")
    return bundle_from_dict(value)


def bundle_from_dict(value: object) -> Bundle:
    """Build a bundle from parsed JSON.

    Raises MalformedBundleError with the reason.
    """
    fields = _exactly(value, _FIELDS, "A bundle")
    # `bool` is a subclass of `int` in Python, so `isinstance` would accept `true` as version 1.
    if type(fields["version"]) is not int or fields["version"] != VERSION:
        _refuse(f"version must be {VERSION}: this program supports no other")
    return Bundle(
        UnsignedBundle(
            image_hash=_hex(fields["image_hash"], IMAGE_HASH_BYTES, "image_hash"),
            camera_token=_camera_token(fields["camera_token"]),
            device_certificate_chain=_chain(fields["device_certificate_chain"]),
            captured_at=_time(fields["captured_at"]),
        ),
        signature=_base64(fields["signature"], "signature", "base64"),
    )


def _camera_token(value: object) -> CameraToken:
    fields = _exactly(value, _TOKEN_FIELDS, "camera_token")
    if type(fields["table_id"]) is not int or type(fields["key_index"]) is not int:
        _refuse("table_id and key_index are integers")
    try:
        return CameraToken(
            encrypted_nuc_hash=_hex(
                fields["encrypted_nuc_hash"], ENCRYPTED_NUC_HASH_BYTES, "encrypted_nuc_hash"
            ),
            table_id=fields["table_id"],
            key_index=fields["key_index"],
            nonce=_hex(fields["nonce"], NONCE_BYTES, "nonce"),
        )
    except MalformedCameraTokenError as error:
        raise MalformedBundleError(str(error)) from None


def _chain(value: object) -> tuple[bytes, ...]:
    if not isinstance(value, list) or len(value) != CHAIN_LENGTH:
        _refuse(
            "device_certificate_chain is a list of two: the device's certificate, then the"
            " intermediate's"
        )
    return tuple(
        _base64(each, f"device_certificate_chain[{number}]", "base64 of a certificate's DER")
        for number, each in enumerate(value)
    )


def _hex(value: object, length: int, name: str) -> bytes:
    if not isinstance(value, str) or not re.fullmatch(f"[0-9a-f]{{{2 * length}}}", value):
        _refuse(f"{name} is {2 * length} hex digits in lower case")
    return bytes.fromhex(value)


def _base64(value: object, name: str, what: str) -> bytes:
    """Decode base64 (RFC 4648, section 4). Raise MalformedBundleError for non-canonical base64.

    The errors name frequent mistakes: PEM, MIME line breaks, the URL-safe alphabet.
    """
    expected = f"{name} is {what}, with padding and without line breaks"
    if not isinstance(value, str) or not value:
        _refuse(expected)
    if "-----BEGIN" in value:
        _refuse(f"{expected}, not PEM: leave out its first and last line, and join the others")
    if any(character.isspace() for character in value):
        _refuse(f"{expected}. It has white space, as MIME encoders add it")
    if "-" in value or "_" in value:
        _refuse(f"{expected}, in the alphabet with + and /, not in that of URLs")
    try:
        decoded = b64decode(value, validate=True)
    except ValueError:  # binascii.Error among them
        decoded = b""
    # `b64decode` ignores unused bits in the last character, so several texts decode to the same
    # bytes. Encoding again finds all but the canonical one.
    if _as_base64(decoded) != value:
        _refuse(expected)
    return decoded


def _canonical(fields: dict[str, Any]) -> bytes:
    # All names and values are ASCII, and all numbers are integers below 2**53. For those, sorting
    # by code point and the escapes of `json.dumps` are what RFC 8785 requires.
    text = json.dumps(fields, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return text.encode("ascii")


def _as_base64(value: bytes) -> str:
    return b64encode(value).decode("ascii")


def _time(value: object) -> datetime:
    time = parse_time(value)
    if time is not None:
        return time
    return _refuse("captured_at is a time such as 2026-01-31T12:00:00.000000Z")


def parse_time(value: object) -> datetime | None:
    """Return the time that `format_time` wrote, or None for every other value."""
    try:
        time = datetime.fromisoformat(value) if isinstance(value, str) else None
    except ValueError:
        time = None
    if time is not None and format_time(time) == value:  # fromisoformat accepts more forms
        return time
    return None


def format_time(time: datetime) -> str:
    """Return a UTC time in its only accepted form: RFC 3339 with microseconds and `Z`."""
    return time.isoformat(timespec="microseconds").removesuffix("+00:00") + "Z"


def _exactly(value: object, names: frozenset[str], what: str) -> Mapping[str, Any]:
    if not isinstance(value, dict) or set(value) != names:
        _refuse(f"{what} has exactly the fields {', '.join(sorted(names))}")
    return value


def _refuse(sentence: str) -> NoReturn:
    raise MalformedBundleError(f"{sentence}.")
