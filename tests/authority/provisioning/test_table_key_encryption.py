"""Secrets as JWE: another library opens them, with the recipient's key alone."""

import json
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa, x25519
from jwcrypto import jwe, jwk

from birthmark_sma.authority.provisioning.table_key_encryption import seal_table_keys

TABLE_KEYS = {"7": "ab" * 32, "0": "00" * 32, "2499": "ff" * 32}

KINDS: dict[str, Callable[[], Any]] = {
    "P-256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "P-384": lambda: ec.generate_private_key(ec.SECP384R1()),
    "X25519": x25519.X25519PrivateKey.generate,
    "RSA": lambda: rsa.generate_private_key(65537, 2048),
}


@cache
def key_of(kind: str) -> Any:
    """A key of a kind, the same for all tests."""
    return KINDS[kind]()


def private_jwk(key: Any) -> jwk.JWK:
    """Return a private key as the other library takes it."""
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    return jwk.JWK.from_pem(pem)


@pytest.mark.parametrize("kind", KINDS)
def test_jwcrypto_opens_it(kind: str) -> None:
    """Compact JWE with the algorithms of the contract, and exactly the object inside."""
    sealed = seal_table_keys(TABLE_KEYS, key_of(kind).public_key())
    assert sealed.count(".") == 4
    opened = jwe.JWE()
    opened.deserialize(sealed, private_jwk(key_of(kind)))
    assert json.loads(opened.payload) == TABLE_KEYS
    algorithm = "RSA-OAEP-256" if kind == "RSA" else "ECDH-ES+A256KW"
    assert (opened.jose_header["alg"], opened.jose_header["enc"]) == (algorithm, "A256GCM")
    if kind != "RSA":
        assert opened.jose_header["epk"]["crv"] == kind


@pytest.mark.parametrize("kind", KINDS)
def test_nobody_else_opens_it(kind: str) -> None:
    """Neither another key of the same kind, nor the reader of the wire."""
    sealed = seal_table_keys(TABLE_KEYS, key_of(kind).public_key())
    with pytest.raises(Exception, match=r"(?i)decrypt|key|unwrap|invalid"):
        jwe.JWE().deserialize(sealed, private_jwk(KINDS[kind]()))
    assert "abababab" not in sealed


@pytest.mark.parametrize("part", range(5))
def test_an_altered_part_is_noticed(part: int) -> None:
    """Header, wrapped key, nonce, ciphertext and tag are all bound together."""
    parts = seal_table_keys(TABLE_KEYS, key_of("P-256").public_key()).split(".")
    middle = len(parts[part]) // 2
    other = "A" if parts[part][middle] != "A" else "B"
    parts[part] = parts[part][:middle] + other + parts[part][middle + 1 :]
    with pytest.raises(Exception, match=r"(?i)decrypt|invalid|key|unwrap|tag|header"):
        jwe.JWE().deserialize(".".join(parts), private_jwk(key_of("P-256")))


def test_no_two_are_alike() -> None:
    """Each has an ephemeral key and a nonce of its own."""
    sealed = [seal_table_keys(TABLE_KEYS, key_of("P-256").public_key()) for _ in range(10)]
    for part in range(5):
        assert len({each.split(".")[part] for each in sealed}) == 10
