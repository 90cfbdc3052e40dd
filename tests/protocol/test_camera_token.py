"""Camera tokens against the published vectors, and by their properties."""

import json
import re
from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given
from hypothesis import strategies as st

from birthmark_sma.errors import MalformedCameraTokenError, UnopenedCameraTokenError
from birthmark_sma.protocol import camera_token as camera_token_module
from birthmark_sma.protocol.camera_token import (
    DIGEST_BYTES,
    CameraToken,
    open_camera_token,
    seal,
    token_digest,
)
from birthmark_sma.protocol.key_derivation import derive_key
from birthmark_sma.protocol.key_table import MAX_WIRE_INTEGER, STANDARD_SIZES

VECTORS = json.loads((Path(__file__).parents[2] / "vectors" / "camera_token.json").read_text())
TABLE_ID = 7

byte_strings_of_32 = st.binary(min_size=32, max_size=32)
nonces = st.binary(min_size=12, max_size=12)
key_indices = st.integers(0, 999)


def cases(result: str) -> list[Any]:
    """Return the cases of one result as parameters, each named by its number and comment."""
    return [
        pytest.param(case, id=f"{case['tcId']}-{case['comment']}".replace(" ", "_"))
        for case in VECTORS["tests"]
        if case["result"] == result
    ]


def parse(case: dict[str, Any]) -> CameraToken:
    """Read a case as a camera sends it: hex of whole bytes in either case, and nothing else."""
    for field in ("encryptedNucHash", "nonce"):
        if not re.fullmatch(r"(?:[0-9A-Fa-f]{2})*", case[field]):
            raise MalformedCameraTokenError(f"{field} is not hex.")
    return CameraToken(
        encrypted_nuc_hash=bytes.fromhex(case["encryptedNucHash"]),
        table_id=TABLE_ID,
        key_index=case["keyIndex"],
        nonce=bytes.fromhex(case["nonce"]),
    )


def key_of(case: dict[str, Any]) -> bytes:
    """Derive the key that a case is to be opened with."""
    return derive_key(bytes.fromhex(case["masterKey"]), case["keyIndex"])


@pytest.mark.parametrize("case", cases("valid"))
def test_valid_vector(case: dict[str, Any]) -> None:
    """A valid token opens to its NUC hash, and sealing again gives the very same bytes."""
    camera_token = parse(case)
    nuc_hash = bytes.fromhex(case["nucHash"])
    assert open_camera_token(camera_token, key_of(case)) == nuc_hash
    sealed = seal(
        nuc_hash,
        key=key_of(case),
        table_id=TABLE_ID,
        key_index=case["keyIndex"],
        nonce=camera_token.nonce,
    )
    assert sealed == camera_token


@pytest.mark.parametrize("case", cases("invalid"))
def test_invalid_vector(case: dict[str, Any]) -> None:
    """An invalid token is well formed, and does not open."""
    with pytest.raises(UnopenedCameraTokenError):
        open_camera_token(parse(case), key_of(case))


@pytest.mark.parametrize("case", cases("malformed"))
def test_malformed_vector(case: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Threats 14 and 16: a malformed token is refused before any cryptography.

    That is: by its hex, by its construction, or by an index which the table does not have.
    """

    def no_cryptography(key: bytes) -> AESGCM:
        raise AssertionError("a malformed token reached the cipher")

    monkeypatch.setattr(camera_token_module, "AESGCM", no_cryptography)
    try:
        camera_token = parse(case)
    except MalformedCameraTokenError:
        return
    assert not STANDARD_SIZES.has_key_index(camera_token.key_index)


def test_no_vector_is_missing() -> None:
    """Every case has one of the three results, and the file holds as many as it says."""
    assert len(VECTORS["tests"]) == VECTORS["numberOfTests"]
    assert {case["result"] for case in VECTORS["tests"]} == set(VECTORS["results"])


@given(byte_strings_of_32, byte_strings_of_32, key_indices, nonces)
def test_what_is_sealed_opens(
    nuc_hash: bytes, master_key: bytes, key_index: int, nonce: bytes
) -> None:
    """Opening gives back any NUC hash sealed under any key."""
    key = derive_key(master_key, key_index)
    camera_token = seal(nuc_hash, key=key, table_id=0, key_index=key_index, nonce=nonce)
    assert len(camera_token.encrypted_nuc_hash) == 48
    assert camera_token.key_index == key_index
    assert camera_token.nonce == nonce
    assert open_camera_token(camera_token, key) == nuc_hash


SEALED_BITS = 8 * (12 + 48)
"""Nonce, then ciphertext and tag: every bit of them counts."""


def flip(text: bytes, bit: int) -> bytes:
    """Return the bytes with one bit flipped."""
    flipped = bytearray(text)
    flipped[bit // 8] ^= 1 << bit % 8
    return bytes(flipped)


def opens(camera_token: CameraToken, key: bytes) -> bool:
    """Say whether a token opens."""
    try:
        open_camera_token(camera_token, key)
    except UnopenedCameraTokenError:
        return False
    return True


def test_any_flipped_bit_does_not_open() -> None:
    """Not one bit of nonce, ciphertext or tag can be changed."""
    key = derive_key(bytes(32), 234)
    sealed = seal(bytes(range(32)), key=key, table_id=0, key_index=234, nonce=bytes(12))
    altered = [flip(sealed.nonce + sealed.encrypted_nuc_hash, bit) for bit in range(SEALED_BITS)]
    opened = [
        bit
        for bit, text in enumerate(altered)
        if opens(replace(sealed, nonce=text[:12], encrypted_nuc_hash=text[12:]), key)
    ]
    assert opens(sealed, key)
    assert opened == []


@given(byte_strings_of_32, st.integers(0, 255), byte_strings_of_32, key_indices, nonces)
def test_a_neighbouring_master_key_does_not_open(
    master_key: bytes, bit: int, nuc_hash: bytes, key_index: int, nonce: bytes
) -> None:
    """One bit of the master key decides: another table never opens a token."""
    sealed = seal(
        nuc_hash,
        key=derive_key(master_key, key_index),
        table_id=0,
        key_index=key_index,
        nonce=nonce,
    )
    with pytest.raises(UnopenedCameraTokenError):
        open_camera_token(sealed, derive_key(flip(master_key, bit), key_index))


@given(byte_strings_of_32, key_indices, key_indices)
def test_another_key_index_does_not_open(master_key: bytes, sealing: int, opening: int) -> None:
    """The key index on the wire cannot be changed."""
    sealed = seal(
        bytes(32),
        key=derive_key(master_key, sealing),
        table_id=0,
        key_index=sealing,
        nonce=bytes(12),
    )
    if sealing == opening:
        return
    with pytest.raises(UnopenedCameraTokenError):
        open_camera_token(sealed, derive_key(master_key, opening))


def test_an_unopened_token_does_not_tell_why() -> None:
    """Threat 18: a wrong key, nonce, text and tag give one and the same error."""
    key = derive_key(bytes(32), 0)
    sealed = seal(bytes(32), key=key, table_id=0, key_index=0, nonce=bytes(12))
    attempts = [
        (sealed, derive_key(bytes(32), 1)),
        (replace(sealed, nonce=bytes(11) + b"\x01"), key),
        (replace(sealed, encrypted_nuc_hash=flip(sealed.encrypted_nuc_hash, 0)), key),
        (replace(sealed, encrypted_nuc_hash=flip(sealed.encrypted_nuc_hash, 383)), key),
    ]
    told = set()
    for camera_token, attempted_key in attempts:
        with pytest.raises(UnopenedCameraTokenError) as caught:
            open_camera_token(camera_token, attempted_key)
        told.add(str(caught.value))
        assert caught.value.__cause__ is None
    assert len(told) == 1


@given(st.binary(max_size=100).filter(lambda text: len(text) != 48))
def test_a_ciphertext_of_another_length_is_malformed(encrypted_nuc_hash: bytes) -> None:
    """Only 48 bytes make a token."""
    with pytest.raises(MalformedCameraTokenError, match="encrypted_nuc_hash"):
        CameraToken(encrypted_nuc_hash, table_id=0, key_index=0, nonce=bytes(12))


@given(st.binary(max_size=100).filter(lambda text: len(text) != 12))
def test_a_nonce_of_another_length_is_malformed(nonce: bytes) -> None:
    """Threat 16: GCM itself would accept a nonce of 64 bytes; a camera token does not."""
    with pytest.raises(MalformedCameraTokenError, match="nonce"):
        CameraToken(bytes(48), table_id=0, key_index=0, nonce=nonce)


@pytest.mark.parametrize("number", [-1, -(2**31), MAX_WIRE_INTEGER + 1, 2**63, 2**64])
@pytest.mark.parametrize("field", ["table_id", "key_index"])
def test_a_number_beyond_the_wire_is_malformed(field: str, number: int) -> None:
    """Threat 21: no number that a database could choke on gets into a token."""
    sound = CameraToken(bytes(48), table_id=0, key_index=0, nonce=bytes(12))
    numbers = {"table_id": sound.table_id, "key_index": sound.key_index, field: number}
    with pytest.raises(MalformedCameraTokenError, match=field):
        CameraToken(bytes(48), nonce=bytes(12), **numbers)


@pytest.mark.parametrize("number", [0, 2_499, 2_500, MAX_WIRE_INTEGER])
def test_a_table_that_does_not_exist_is_still_well_formed(number: int) -> None:
    """Whether a table exists is the authority's to know, not the token's."""
    camera_token = CameraToken(bytes(48), table_id=number, key_index=number, nonce=bytes(12))
    assert camera_token.table_id == number


@pytest.mark.parametrize("length", [0, 31, 33, 48])
def test_only_a_nuc_hash_of_32_bytes_is_sealed(length: int) -> None:
    """A NUC hash of another length is refused, and not repeated in the error."""
    with pytest.raises(MalformedCameraTokenError, match=f"32 bytes, not {length}"):
        seal(bytes(length), key=bytes(32), table_id=0, key_index=0, nonce=bytes(12))


@pytest.mark.parametrize("length", [0, 8, 11, 13, 16, 64])
def test_only_a_nonce_of_12_bytes_seals(length: int) -> None:
    """A nonce of another length is refused before the cipher sees it."""
    with pytest.raises(MalformedCameraTokenError, match=f"12 bytes, not {length}"):
        seal(bytes(32), key=bytes(32), table_id=0, key_index=0, nonce=bytes(length))


def test_a_token_cannot_be_altered() -> None:
    """A token that was checked stays as it was checked."""
    camera_token = CameraToken(bytes(48), table_id=0, key_index=0, nonce=bytes(12))
    with pytest.raises(FrozenInstanceError):
        camera_token.key_index = 5  # type: ignore[misc]


# --- digests


_tokens = st.builds(
    CameraToken,
    encrypted_nuc_hash=st.binary(min_size=48, max_size=48),
    table_id=st.integers(0, MAX_WIRE_INTEGER),
    key_index=st.integers(0, MAX_WIRE_INTEGER),
    nonce=st.binary(min_size=12, max_size=12),
)


@given(_tokens, _tokens)
def test_a_digest_stands_for_one_token(one: CameraToken, other: CameraToken) -> None:
    assert len(token_digest(one)) == DIGEST_BYTES
    assert (token_digest(one) == token_digest(other)) == (one == other)


def test_no_part_runs_into_the_next() -> None:
    digests = {
        token_digest(CameraToken(bytes(48), table_id, key_index, bytes(12)))
        for table_id, key_index in [(0, 0), (1, 0), (0, 1), (256, 0), (0, 256), (1, 1)]
    }
    assert len(digests) == 6
