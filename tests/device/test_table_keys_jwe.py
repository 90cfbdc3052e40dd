"""The camera opens what the authority's own library, and another one, sealed."""

import json
from base64 import urlsafe_b64decode, urlsafe_b64encode

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from jwcrypto import jwe, jwk

from birthmark_sma.authority.table_keys_jwe import seal_table_keys
from birthmark_sma.device.table_keys_jwe import open_table_keys
from birthmark_sma.errors import ProtocolError
from tests.support.camera import public_pem

KEYS = {str(n): f"{n:064x}" for n in (7, 70, 700)}


@pytest.fixture
def key() -> ec.EllipticCurvePrivateKey:
    """A camera's second key."""
    return ec.generate_private_key(ec.SECP256R1())


def sealed_by_jwcrypto(key: ec.EllipticCurvePrivateKey, **header: str) -> str:
    """What a third party's library makes."""
    protected = {"alg": "ECDH-ES+A256KW", "enc": "A256GCM"} | header
    token = jwe.JWE(json.dumps(KEYS).encode(), json.dumps(protected))
    token.add_recipient(jwk.JWK.from_pem(public_pem(key).encode()))
    text: str = token.serialize(compact=True)
    return text


def test_what_the_authority_seals_opens(key: ec.EllipticCurvePrivateKey) -> None:
    for _ in range(20):
        assert open_table_keys(seal_table_keys(KEYS, key.public_key()), key) == KEYS


@pytest.mark.parametrize("parties", [{}, {"apu": "QWxpY2U", "apv": "Qm9i"}], ids=["none", "both"])
def test_what_another_library_seals_opens(
    key: ec.EllipticCurvePrivateKey, parties: dict[str, str]
) -> None:
    assert open_table_keys(sealed_by_jwcrypto(key, **parties), key) == KEYS


def test_nobody_else_opens_it(key: ec.EllipticCurvePrivateKey) -> None:
    text = seal_table_keys(KEYS, key.public_key())
    with pytest.raises(ProtocolError, match="do not open"):
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
