"""Key derivation against the published vectors, against pyca's HKDF, and by its properties."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from hypothesis import given
from hypothesis import strategies as st

from birthmark_sma.errors import ProtocolError
from birthmark_sma.protocol.key_derivation import (
    MAX_KEY_INDEX,
    NORMATIVE,
    PUBLISHED_CLIENTS,
    Derivation,
    derive_key,
    expand,
    extract,
)

VECTORS = Path(__file__).parents[2] / "vectors"
NORMATIVE_VECTORS = json.loads((VECTORS / "key_derivation.json").read_text())
PUBLISHED_VECTORS = json.loads((VECTORS / "key_derivation_published_clients.json").read_text())

CASES = [
    *((NORMATIVE, case) for case in NORMATIVE_VECTORS["tests"]),
    *((PUBLISHED_CLIENTS, case) for case in PUBLISHED_VECTORS["tests"]),
]

master_keys = st.binary(min_size=32, max_size=32)
key_indices = st.one_of(st.integers(0, 999), st.integers(0, MAX_KEY_INDEX))
derivations = st.sampled_from([NORMATIVE, PUBLISHED_CLIENTS])


def name_of(value: object) -> str:
    """Name a case by its file and number."""
    if isinstance(value, Derivation):
        return "normative" if value is NORMATIVE else "published_clients"
    assert isinstance(value, dict)
    return f"{value['tcId']}-{value['comment']}".replace(" ", "_")


@pytest.mark.parametrize(("derivation", "case"), CASES, ids=name_of)
def test_vector(derivation: Derivation, case: dict[str, Any]) -> None:
    """Every case of both files derives the key that OpenSSL derived."""
    derived = derive_key(bytes.fromhex(case["masterKey"]), case["keyIndex"], derivation)
    assert derived.hex() == case["derivedKey"]


@pytest.mark.parametrize("vectors", [NORMATIVE_VECTORS, PUBLISHED_VECTORS])
def test_no_vector_is_missing(vectors: dict[str, Any]) -> None:
    """The files hold as many cases as they say, so that a cut file does not pass."""
    assert len(vectors["tests"]) == vectors["numberOfTests"]


def test_the_keys_of_a_whole_table() -> None:
    """One digest over all 1,000 keys of a table, concatenated in order."""
    accumulated = NORMATIVE_VECTORS["accumulated"]
    pseudorandom_key = extract(bytes.fromhex(accumulated["masterKey"]))
    keys = b"".join(expand(pseudorandom_key, key_index) for key_index in range(1_000))
    assert hashlib.sha256(keys).hexdigest() == accumulated["digest"]


def test_the_vectors_state_the_parameters_used() -> None:
    """Salt and info of both derivations are those that the files name."""
    assert NORMATIVE.salt.hex() == NORMATIVE_VECTORS["salt"]
    assert NORMATIVE.info_suffix == b""
    assert PUBLISHED_CLIENTS.salt.hex() == PUBLISHED_VECTORS["salt"]
    assert PUBLISHED_CLIENTS.info_suffix == b"Birthmark"


@given(master_keys, key_indices, derivations)
def test_derive_is_extract_then_expand(
    master_key: bytes, key_index: int, derivation: Derivation
) -> None:
    """A pseudorandom key that was kept gives the same keys as the master key."""
    kept = extract(master_key, derivation)
    assert derive_key(master_key, key_index, derivation) == expand(kept, key_index, derivation)


@given(master_keys, key_indices, derivations)
def test_another_implementation_agrees(
    master_key: bytes, key_index: int, derivation: Derivation
) -> None:
    """The HKDF of pyca's cryptography gives the same key for any input."""
    info = key_index.to_bytes(4, "big") + derivation.info_suffix
    hkdf = HKDF(algorithm=hashes.SHA256(), length=32, salt=derivation.salt, info=info)
    assert derive_key(master_key, key_index, derivation) == hkdf.derive(master_key)


@given(st.lists(st.tuples(master_keys, key_indices, derivations), unique=True, max_size=20))
def test_different_inputs_give_different_keys(
    inputs: list[tuple[bytes, int, Derivation]],
) -> None:
    """No two of master key, index and derivation share a key of 32 bytes."""
    keys = {derive_key(*one) for one in inputs}
    assert len(keys) == len(inputs)
    assert all(len(key) == 32 for key in keys)


@pytest.mark.parametrize("length", [0, 16, 31, 33, 64])
def test_a_master_key_of_another_length_is_refused(length: int) -> None:
    """A master key has 32 bytes, and the error does not repeat it."""
    with pytest.raises(ProtocolError, match=f"32 bytes, not {length}"):
        derive_key(bytes(length), 0)


@pytest.mark.parametrize("key_index", [-1, MAX_KEY_INDEX + 1, 2**63])
def test_an_index_beyond_four_bytes_is_refused(key_index: int) -> None:
    """An index that does not fit the info field is an error, and is never cut to fit."""
    with pytest.raises(ProtocolError):
        derive_key(bytes(32), key_index)


def test_the_ends_of_the_index_are_accepted() -> None:
    """The first and the last index that the info field can carry give keys."""
    assert derive_key(bytes(32), 0) != derive_key(bytes(32), MAX_KEY_INDEX)
