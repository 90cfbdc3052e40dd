"""The key-encryption key: what it wraps opens only in its place, and only with the right secret."""

import secrets
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from birthmark_sma.authority.kek import sources as kek_sources
from birthmark_sma.authority.kek.sources import KekSecret
from birthmark_sma.authority.kek.wrapping import (
    KeyEncryptionKey,
    NucHashIndex,
    create_secrets,
    open_secrets,
)
from birthmark_sma.errors import ConfigurationError, PrivateFileError, WrongSecretError

KEY = bytes(range(32))
PLACE = b"key table 7"
NOW = datetime(2026, 1, 2, tzinfo=UTC)


def with_kek_file(path: Path | None, passphrase: bytes = b"passphrase") -> KekSecret:
    """What an operator gives who names a file with the key-encryption key."""
    return KekSecret(lambda: passphrase, path)


def write_kek(path: Path, content: bytes, mode: int = 0o600) -> Path:
    """Write a file with a key-encryption key."""
    path.write_bytes(content)
    path.chmod(mode)
    return path


# --- wrapping


@given(st.binary(max_size=200), st.binary(max_size=50))
def test_what_was_wrapped_opens_in_its_place(plaintext: bytes, place: bytes) -> None:
    """Any secret, any place; and the secret is not to be seen in the result."""
    kek = KeyEncryptionKey(1, KEY)
    wrapped = kek.wrap(plaintext, place)
    assert kek.unwrap(wrapped, place) == plaintext
    assert len(wrapped) == 12 + len(plaintext) + 16
    assert len(plaintext) < 8 or plaintext not in wrapped


def test_no_two_wrappings_are_alike() -> None:
    """Equal master keys would otherwise show as equal."""
    kek = KeyEncryptionKey(1, KEY)
    assert len({kek.wrap(KEY, PLACE) for _ in range(100)}) == 100


@pytest.mark.parametrize(
    ("key", "place"),
    [(KEY, b"key table 8"), (KEY, b""), (KEY[::-1], PLACE)],
    ids=["other place", "no place", "other key"],
)
def test_it_opens_nowhere_else(key: bytes, place: bytes) -> None:
    """Threat 13: one row cannot stand in for another, and a dump is of no use without the key."""
    wrapped = KeyEncryptionKey(1, KEY).wrap(b"secret", PLACE)
    with pytest.raises(WrongSecretError, match="CA_PASSWORD, SMA_KEK_FILE or"):
        KeyEncryptionKey(1, key).unwrap(wrapped, place)


@given(st.integers(0, 12 + 6 + 16 - 1), st.integers(0, 7))
def test_a_flipped_bit_is_noticed(byte: int, bit: int) -> None:
    """Whether in nonce, ciphertext or tag."""
    wrapped = bytearray(KeyEncryptionKey(1, KEY).wrap(b"secret", PLACE))
    wrapped[byte] ^= 1 << bit
    with pytest.raises(WrongSecretError):
        KeyEncryptionKey(1, KEY).unwrap(bytes(wrapped), PLACE)


@pytest.mark.parametrize("length", range(12 + 6 + 16))
def test_a_truncated_value_is_noticed(length: int) -> None:
    """Down to nothing at all."""
    wrapped = KeyEncryptionKey(1, KEY).wrap(b"secret", PLACE)
    with pytest.raises(WrongSecretError):
        KeyEncryptionKey(1, KEY).unwrap(wrapped[:length], PLACE)


def test_no_repr_shows_a_key(tmp_path: Path) -> None:
    """Threat 28: printing any of these tells nothing."""
    settings = with_kek_file(write_kek(tmp_path / "kek", KEY))
    stored, opened = create_secrets(settings, NOW)
    nuc_hash_key = opened.keks.newest.derive_nuc_hash_key()
    for thing in (stored, opened, opened.keks, opened.keks.newest, opened.nuc_hash_index, settings):
        for secret in (KEY, nuc_hash_key):
            assert secret.hex() not in f"{thing!r} {thing}"
            assert repr(secret)[2:-1] not in f"{thing!r} {thing}"


# --- where the key comes from


@pytest.mark.parametrize(
    "content",
    [KEY, KEY.hex().encode(), KEY.hex().upper().encode(), b"  " + KEY.hex().encode() + b"\r\n"],
    ids=["raw", "hex", "upper case", "with white space"],
)
def test_a_kek_file_is_raw_or_hex(tmp_path: Path, content: bytes) -> None:
    """All of these are the same key, as `openssl rand` writes it with and without -hex."""
    stored, _ = create_secrets(with_kek_file(write_kek(tmp_path / "one", KEY)), NOW)
    other = with_kek_file(write_kek(tmp_path / "other", content))
    assert stored.source == "file"
    assert open_secrets([stored], other).keks.newest.unwrap(
        stored.wrapped_nuc_hash_key, b"nuc hash key"
    )


@pytest.mark.parametrize(
    "content",
    [
        b"",
        KEY[:31],
        KEY + b"\n",
        KEY * 2,
        KEY.hex().encode()[:-1],
        b"g" * 64,
        b"0" * 63,
        b"\xff" * 64,
    ],
)
def test_a_kek_file_of_another_length_is_refused(tmp_path: Path, content: bytes) -> None:
    """The message says how to make one, and shows nothing of the content."""
    settings = with_kek_file(write_kek(tmp_path / "kek", content))
    with pytest.raises(ConfigurationError, match="openssl rand -hex 32") as refused:
        create_secrets(settings, NOW)
    assert KEY.hex()[:8] not in str(refused.value)


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604])
def test_a_kek_file_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    """Threat 29: a key that everybody knows wraps nothing."""
    settings = with_kek_file(write_kek(tmp_path / "kek", KEY, mode))
    with pytest.raises(PrivateFileError, match="chmod 600"):
        create_secrets(settings, NOW)


def test_a_kek_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    """Nothing else is used in its place."""
    with pytest.raises(PrivateFileError, match="does not exist"):
        create_secrets(with_kek_file(tmp_path / "absent"), NOW)


@pytest.mark.usefixtures("full_derivation_cost")
def test_the_passphrase_opens_what_it_founded() -> None:
    """With scrypt at its real cost: the same passphrase gives the same keys, another is refused."""
    settings = with_kek_file(None)
    stored, new_authority = create_secrets(settings, NOW)
    assert stored.source == "passphrase"
    opened = open_secrets([stored], settings)
    assert opened.nuc_hash_index.of(KEY) == new_authority.nuc_hash_index.of(KEY)
    assert opened.keks.newest.unwrap(new_authority.keks.newest.wrap(KEY, PLACE), PLACE) == KEY


@pytest.mark.parametrize("wrong", [b"", b"Passphrase", b"passphrase ", b"passphrase\n"])
def test_a_wrong_passphrase_is_refused(wrong: bytes) -> None:
    """Before anything is read or written with it."""
    stored, _ = create_secrets(with_kek_file(None), NOW)
    with pytest.raises(WrongSecretError):
        open_secrets([stored], with_kek_file(None, wrong))


def test_another_kek_file_is_refused(tmp_path: Path) -> None:
    """And so is none, with the name of what is missing."""
    stored, _ = create_secrets(with_kek_file(write_kek(tmp_path / "kek", KEY)), NOW)
    other = with_kek_file(write_kek(tmp_path / "other", secrets.token_bytes(32)))
    with pytest.raises(WrongSecretError):
        open_secrets([stored], other)
    with pytest.raises(ConfigurationError, match="SMA_KEK_FILE"):
        open_secrets([stored], with_kek_file(None))


def test_a_kek_file_does_not_replace_the_passphrase_of_an_authority(tmp_path: Path) -> None:
    """An authority founded with a passphrase is opened with it, whatever file is named."""
    stored, _ = create_secrets(with_kek_file(None), NOW)
    settings = with_kek_file(write_kek(tmp_path / "kek", KEY))
    assert open_secrets([stored], settings).keks.newest.kek_id == stored.kek_id


def test_the_salt_differs_from_authority_to_authority() -> None:
    """One table of guesses does not serve for two authorities with one passphrase."""
    new_authority = [create_secrets(with_kek_file(None), NOW) for _ in range(3)]
    assert len({stored.salt for stored, _ in new_authority}) == 3
    assert all(len(stored.salt) >= 16 for stored, _ in new_authority)
    assert len({opened.nuc_hash_index.of(KEY) for _, opened in new_authority}) == 3


@pytest.mark.usefixtures("full_derivation_cost")
def test_a_guess_has_its_price() -> None:
    """OWASP's recommendation for scrypt: N = 2^16 with r = 8 or more."""
    assert kek_sources._SCRYPT_N >= 2**16
    assert kek_sources._SCRYPT_R >= 8


# --- the index of NUC hashes


@given(st.binary(min_size=32, max_size=32), st.binary(min_size=32, max_size=32))
def test_the_index_tells_nuc_hashes_apart(one: bytes, other: bytes) -> None:
    """Threat 13: 32 bytes that are equal where the NUC hashes are, and say nothing of them."""
    index = NucHashIndex(KEY)
    assert (index.of(one) == index.of(other)) == (one == other)
    assert len(index.of(one)) == 32
    assert index.of(one) not in (one, other)
    assert index.of(one) != NucHashIndex(KEY[::-1]).of(one)
