"""Nonces: never twice, whatever happens to the process or the file."""

import hmac
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from birthmark_sma.device import nonces
from birthmark_sma.device.nonces import BLOCK, FILE, MAX_COUNT, Nonces, permute
from birthmark_sma.device.state_directory import PrivateDirectory
from birthmark_sma.errors import DeviceStorageError, NoncesUsedUpError

SECRET = bytes(range(32))


@pytest.fixture
def place(tmp_path: Path) -> PrivateDirectory:
    """The directory of a new camera."""
    directory = PrivateDirectory(tmp_path / "camera")
    nonces.begin(directory)
    return directory


@given(st.binary(min_size=32, max_size=32), st.sets(st.binary(min_size=12, max_size=12)))
def test_a_permutation_gives_nothing_twice(key: bytes, numbers: set[bytes]) -> None:
    permuted = {permute(key, number) for number in numbers}
    assert len(permuted) == len(numbers)
    assert all(len(each) == 12 for each in permuted)


def test_a_permutation_can_be_undone() -> None:
    """One to one by its construction, for every number: ten rounds forth, ten rounds back."""
    for number in (bytes(12), b"\xff" * 12, os.urandom(12)):
        left, right = permute(SECRET, number)[:6], permute(SECRET, number)[6:]
        for step in reversed(range(10)):
            mask = hmac.digest(SECRET, bytes([step]) + left, "sha256")
            left, right = bytes(a ^ b for a, b in zip(right, mask, strict=False)), left
        assert left + right == number


def test_neighbours_do_not_look_alike() -> None:
    """Nobody counts pictures by their nonces: each bit changes half of the time."""
    distances = [
        bin(int.from_bytes(permute(SECRET, n.to_bytes(12, "big"))) ^ int.from_bytes(
            permute(SECRET, (n + 1).to_bytes(12, "big")))).count("1")
        for n in range(2_000)
    ]  # fmt: skip
    assert 47 < sum(distances) / len(distances) < 49
    assert min(distances) > 20


def test_no_nonce_comes_twice_over_many_starts(place: PrivateDirectory, no_chance: None) -> None:
    """Each start stands for a power cut: what was left of a block is skipped."""
    drawn = [
        nonce
        for takes in (1, 2, BLOCK - 1, BLOCK, BLOCK + 1, 0, 3 * BLOCK, 5)
        for source in [Nonces(place, SECRET)]
        for nonce in [source.draw() for _ in range(takes)]
    ]
    assert len(set(drawn)) == len(drawn) > 5 * BLOCK


def test_a_block_is_on_disk_before_its_first_nonce_is_out(
    place: PrivateDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Nonces(place, SECRET)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(os, "fsync", full)
        for _ in range(3):
            with pytest.raises(DeviceStorageError, match="No space left"):
                source.draw()
    assert len({source.draw() for _ in range(BLOCK)}) == BLOCK


def test_a_copied_disk_draws_other_nonces(place: PrivateDirectory) -> None:
    """A cloned card or a restored backup counts from the same number, and meets nobody."""
    first, copy = Nonces(place, SECRET), Nonces(place, SECRET)
    assert not {first.draw() for _ in range(500)} & {copy.draw() for _ in range(500)}


def test_a_lineage_and_a_secret_make_other_permutations(tmp_path: Path, no_chance: None) -> None:
    one, other = (PrivateDirectory(tmp_path / name) for name in ("one", "other"))
    for each in (one, other):
        nonces.begin(each)
    sources = [Nonces(one, SECRET), Nonces(one, bytes(32)), Nonces(other, SECRET)]
    drawn = [source.draw() for source in sources for _ in range(100)]
    assert len(set(drawn)) == 300


def test_at_the_end_it_stops(place: PrivateDirectory) -> None:
    """SP 800-38D, section 8.3: no more than 2**32 under a key."""
    last = nonces._Reservation(bytes(16), MAX_COUNT - 3)
    place.write(FILE, last.to_json())
    source = Nonces(place, SECRET)
    assert len({source.draw() for _ in range(3)}) == 3
    for _ in range(2):
        with pytest.raises(NoncesUsedUpError):
            source.draw()
    with pytest.raises(NoncesUsedUpError):
        Nonces(place, SECRET).draw()
