"""Sealing: the same secret opens it, and nothing else does."""

import sys
from pathlib import Path

import pytest

from birthmark_sma.device import state_encryption as sealing_module
from birthmark_sma.device.state_encryption import (
    UNSEALED,
    Sealing,
    key_command,
    key_file,
    passphrase,
    seal,
    unseal,
)
from birthmark_sma.errors import DamagedDeviceStateError, DeviceSecretError

SECRET = b"what nobody else may read"
PLACE = Path("camera.json")


def written(tmp_path: Path, content: bytes, mode: int = 0o600) -> Path:
    """A key file."""
    path = tmp_path / "key"
    path.touch(mode)
    path.chmod(mode)
    path.write_bytes(content)
    return path


def printing(text: str) -> Sealing:
    """The key that a small program writes."""
    return key_command([sys.executable, "-c", text])


@pytest.mark.parametrize("form", ["hex", "raw", "line"])
def test_a_key_in_a_file(tmp_path: Path, form: str) -> None:
    key = bytes(range(32))
    content = {"raw": key, "hex": key.hex().encode(), "line": key.hex().upper().encode() + b"\n"}
    sealed = seal(SECRET, key_file(written(tmp_path, content[form])))
    assert SECRET not in sealed
    assert unseal(sealed, key_file(written(tmp_path, key)), PLACE) == SECRET


def test_a_key_from_a_command() -> None:
    sealed = seal(SECRET, printing("print('ab' * 32)"))
    assert unseal(sealed, printing("print('AB' * 32)"), PLACE) == SECRET
    with pytest.raises(DeviceSecretError, match="cannot be decrypted"):
        unseal(sealed, printing("print('ac' * 32)"), PLACE)


@pytest.mark.usefixtures("full_derivation_cost")
def test_a_passphrase() -> None:
    sealed = seal(SECRET, passphrase("gärtner"))
    assert unseal(sealed, passphrase("gärtner"), PLACE) == SECRET
    with pytest.raises(DeviceSecretError, match="cannot be decrypted"):
        unseal(sealed, passphrase("gartner"), PLACE)
    with pytest.raises(DeviceSecretError, match="empty"):
        passphrase("")


@pytest.mark.usefixtures("full_derivation_cost")
def test_a_guess_has_its_price() -> None:
    """32 MiB of memory for each."""
    assert sealing_module._SCRYPT_N * sealing_module._SCRYPT_R * 128 >= 2**25


def test_every_sealing_has_a_key_of_its_own() -> None:
    """Threat 29: two versions of a file side by side tell nothing about each other."""
    sealing = passphrase("x")
    assert seal(SECRET, sealing) != seal(SECRET, sealing)


def test_how_it_is_sealed_is_not_for_the_file_to_choose(tmp_path: Path) -> None:
    """Whoever can write the file could offer one that is not sealed, or for a weaker secret."""
    for offered in (UNSEALED, key_file(written(tmp_path, bytes(32)))):
        with pytest.raises(DeviceSecretError, match="the app uses 'passphrase'"):
            unseal(seal(SECRET, offered), passphrase("x"), PLACE)


@pytest.mark.parametrize("sealing", [UNSEALED, passphrase("x")], ids=["plain", "sealed"])
def test_every_altered_byte_is_noticed(sealing: Sealing) -> None:
    whole = seal(SECRET, sealing)
    places = range(len(whole)) if sealing is UNSEALED else range(0, len(whole), 9)
    for place in places:
        altered = whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :]
        try:
            opened = unseal(altered, sealing, PLACE)
        except (DamagedDeviceStateError, DeviceSecretError) as error:
            assert "camera.json" in str(error)  # noqa: PT017  either error will do
        else:
            assert opened == SECRET  # a letter of base64's last one may carry no bits


@pytest.mark.parametrize(
    ("sealing", "sentence"),
    [
        (key_command(["/does/not/exist"]), "cannot be run"),
        (key_command([]), "cannot be run"),
        (printing("raise SystemExit(3)"), "exit code 3"),
        (printing("print('zz' * 32)"), "neither 32 raw bytes"),
        (printing("pass"), "neither 32 raw bytes"),
        (key_file(Path("/does/not/exist")), "cannot be read"),
    ],
)
def test_a_secret_that_is_not_to_be_had(sealing: Sealing, sentence: str) -> None:
    with pytest.raises(DeviceSecretError, match=sentence):
        seal(SECRET, sealing)


def test_a_key_file_that_others_can_read(tmp_path: Path) -> None:
    """Threat 29."""
    with pytest.raises(DeviceSecretError, match="chmod 600"):
        seal(SECRET, key_file(written(tmp_path, bytes(32), 0o644)))
