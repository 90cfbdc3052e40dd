"""The camera opens what the authority's own library, and another one, sealed."""

import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.concatkdf import ConcatKDFHash
from cryptography.hazmat.primitives.keywrap import aes_key_wrap
from jwcrypto import jwe, jwk

from birthmark_sma.authority.provisioning.table_key_encryption import seal_table_keys
from birthmark_sma.device.table_key_decryption import open_table_keys
from birthmark_sma.errors import ProtocolError
from tests.support.cameras.camera import public_pem

KEYS = {str(n): f"{n:064x}" for n in (7, 70, 700)}


@pytest.fixture
def key() -> ec.EllipticCurvePrivateKey:
    """A camera's second key."""
    return ec.generate_private_key(ec.SECP256R1())


def sealed_by_jwcrypto(key: ec.EllipticCurvePrivateKey, **header: Any) -> str:
    """What a third party's library makes."""
    protected = {"alg": "ECDH-ES+A256KW", "enc": "A256GCM"} | header
    token = jwe.JWE(json.dumps(KEYS).encode(), json.dumps(protected))
    token.add_recipient(jwk.JWK.from_pem(public_pem(key).encode()))
    text: str = token.serialize(compact=True)
    return text


def test_what_the_authority_seals_opens(key: ec.EllipticCurvePrivateKey) -> None:
    for _ in range(20):
        assert open_table_keys(seal_table_keys(KEYS, key.public_key()), key) == KEYS


def test_what_another_library_seals_opens(key: ec.EllipticCurvePrivateKey) -> None:
    assert open_table_keys(sealed_by_jwcrypto(key), key) == KEYS
    assert open_table_keys(sealed_by_jwcrypto(key, cty="json"), key) == KEYS


HEADERS: dict[str, dict[str, Any]] = {
    "apu and apv": {"apu": "QWxpY2U", "apv": "Qm9i"},
    "zip": {"zip": "DEF"},
    "another cty": {"cty": "JWT"},
    "typ": {"typ": "JOSE"},
    "kid": {"kid": "1"},
}


@pytest.mark.parametrize("header", HEADERS.values(), ids=HEADERS)
def test_a_header_with_more_in_it_is_refused(
    key: ec.EllipticCurvePrivateKey, header: dict[str, Any]
) -> None:
    """Soundly sealed by another library: only the header is not as it should be."""
    with pytest.raises(ProtocolError):
        open_table_keys(sealed_by_jwcrypto(key, **header), key)


def sealed_by_hand(
    key: ec.EllipticCurvePrivateKey,
    *,
    head: Callable[[dict[str, Any]], str] = json.dumps,
    wrapped: bytes | None = None,
    nonce: bytes = bytes(12),
    tag: slice = slice(None),
    text: bytes | None = None,
    content_key: bytes = bytes(32),
) -> str:
    """Compact JWE of RFC 7518, section 4.6, in which one thing may be as that forbids."""
    ephemeral = ec.generate_private_key(ec.SECP256R1())
    numbers = ephemeral.public_key().public_numbers()
    x, y = (encoded(each.to_bytes(32, "big")) for each in (numbers.x, numbers.y))
    header = {
        "alg": "ECDH-ES+A256KW",
        "enc": "A256GCM",
        "cty": "json",
        "epk": {"kty": "EC", "crv": "P-256", "x": x, "y": y},
    }
    first = encoded(head(header).encode())
    shared = ephemeral.exchange(ec.ECDH(), key.public_key())
    info = b"\0\0\0\x0eECDH-ES+A256KW" + bytes(8) + (256).to_bytes(4, "big")
    wrapping = ConcatKDFHash(SHA256(), 32, info).derive(shared)
    sealed = AESGCM(content_key).encrypt(nonce, text or json.dumps(KEYS).encode(), first.encode())
    parts = (
        wrapped or aes_key_wrap(wrapping, content_key),
        nonce,
        sealed[:-16],
        sealed[-16:][tag],
    )
    return ".".join([first, *map(encoded, parts)])


def encoded(value: bytes) -> str:
    return urlsafe_b64encode(value).decode().rstrip("=")


def epk(**changes: Any) -> Callable[[dict[str, Any]], str]:
    return lambda header: json.dumps(header | {"epk": header["epk"] | changes})


def longer(header: dict[str, Any]) -> str:
    """A coordinate with a zero byte before it: the same number in another length."""
    x = header["epk"]["x"]
    return epk(x=encoded(b"\0" + urlsafe_b64decode(x + "=")))(header)


FORBIDDEN: dict[str, dict[str, Any]] = {
    "a nonce of 13 bytes": {"nonce": bytes(13)},
    "a nonce of 16 bytes": {"nonce": bytes(16)},
    "a tag of 12 bytes": {"tag": slice(12)},
    "a tag of 15 bytes": {"tag": slice(15)},
    "a content key of 16 bytes": {"content_key": bytes(16)},
    "a wrapped key of 48 bytes": {"wrapped": bytes(48)},
    "a private part in epk": {"head": epk(d="AA")},
    "a key id in epk": {"head": epk(kid="1")},
    "a longer coordinate": {"head": longer},
    "alg twice": {
        "head": lambda header: json.dumps(header).replace(
            '"alg"', '"alg": "ECDH-ES+A256KW", "alg"', 1
        )
    },
    "crit": {"head": lambda header: json.dumps(header | {"crit": ["b64"], "b64": False})},
    "an empty crit": {"head": lambda header: json.dumps(header | {"crit": []})},
    "zip": {"head": lambda header: json.dumps(header | {"zip": "DEF"})},
    "a name twice inside": {"text": b'{"nuc_hash": 1, "nuc_hash": 2}'},
    "no object inside": {"text": b"[]"},
}


@pytest.mark.parametrize("arguments", FORBIDDEN.values(), ids=FORBIDDEN)
def test_what_the_rfc_forbids_is_refused(
    key: ec.EllipticCurvePrivateKey, arguments: dict[str, Any]
) -> None:
    """Everything else of it is sound: each is refused for one thing alone."""
    assert open_table_keys(sealed_by_hand(key), key) == KEYS
    with pytest.raises(ProtocolError):
        open_table_keys(sealed_by_hand(key, **arguments), key)


@pytest.mark.parametrize("part", range(5))
def test_base64url_has_one_spelling(key: ec.EllipticCurvePrivateKey, part: int) -> None:
    """Without padding, white space, or bits that belong to no byte."""
    parts = sealed_by_hand(key).split(".")
    text = parts[part]
    spellings = {
        text + "=" * (-len(text) % 4 or 4),
        text + "\n",
        f" {text}",
        text[:4] + "+/" + text[4:],
    }
    if len(text) % 4:
        last = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
        spellings.add(text[:-1] + last[last.index(text[-1]) ^ 1])
    for spelt in spellings:
        with pytest.raises(ProtocolError):
            open_table_keys(".".join([*parts[:part], spelt, *parts[part + 1 :]]), key)


def test_nobody_else_opens_it(key: ec.EllipticCurvePrivateKey) -> None:
    text = seal_table_keys(KEYS, key.public_key())
    with pytest.raises(ProtocolError, match="cannot be decrypted"):
        open_table_keys(text, ec.generate_private_key(ec.SECP256R1()))


def test_every_altered_part_is_noticed(key: ec.EllipticCurvePrivateKey) -> None:
    parts = seal_table_keys(KEYS, key.public_key()).split(".")
    for n, part in enumerate(parts):
        decoded = bytearray(urlsafe_b64decode(part + "=" * (-len(part) % 4)))
        for place in (0, len(decoded) // 2, len(decoded) - 1):
            altered = decoded.copy()
            altered[place] ^= 1
            other = urlsafe_b64encode(altered).decode().rstrip("=")
            with pytest.raises(ProtocolError):
                open_table_keys(".".join([*parts[:n], other, *parts[n + 1 :]]), key)


def rewritten(text: str, **changes: object) -> str:
    """The same with another header."""
    head, _, rest = text.partition(".")
    header = json.loads(urlsafe_b64decode(head + "=" * (-len(head) % 4))) | changes
    return f"{urlsafe_b64encode(json.dumps(header).encode()).decode().rstrip('=')}.{rest}"


@pytest.mark.parametrize(
    "changes",
    [
        {"alg": "dir"},
        {"alg": "ECDH-ES"},
        {"enc": "A128GCM"},
        {"crit": ["exp"], "exp": 1},
        {"epk": None},
        {"epk": {"kty": "EC", "crv": "P-256", "x": "AA", "y": "AA"}},
        {"epk": {"kty": "OKP", "crv": "X25519", "x": "AA"}},
    ],
)
def test_no_other_way_of_sealing_is_accepted(
    key: ec.EllipticCurvePrivateKey, changes: dict[str, object]
) -> None:
    with pytest.raises(ProtocolError):
        open_table_keys(rewritten(seal_table_keys(KEYS, key.public_key()), **changes), key)


@pytest.mark.parametrize(
    "text", ["", "....", "a.b.c.d", "é.é.é.é.é", "e30.e30.e30.e30.e30", "[" * 9]
)
def test_what_is_no_jwe_is_refused(key: ec.EllipticCurvePrivateKey, text: str) -> None:
    with pytest.raises(ProtocolError):
        open_table_keys(text, key)
