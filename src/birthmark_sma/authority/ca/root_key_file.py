"""Give the root's key file another passphrase, in such a way that no moment can lose it.

The key under the new passphrase lies beside the old one until the rotation has come to its end.
"""

from collections.abc import Callable, Sequence
from enum import StrEnum
from pathlib import Path

from birthmark_sma.errors import ConfigurationError, WrongSecretError
from birthmark_sma.pki.keys.ca_keys import Signer, load_encrypted
from birthmark_sma.pki.keys.encrypted_key import is_slow_to_guess
from birthmark_sma.runtime.secret_files import (
    read_private_file,
    sync_directory,
    write_private_file,
)


class PassphraseChange(StrEnum):
    """What became of the root's key file."""

    CHANGED = "changed"
    NOT_HERE = "not here"
    NOT_WANTED = "not wanted"


class RootKey:
    """The root's key file, and the passphrase that it is to have; None for the one it has."""

    def __init__(self, path: Path, passphrase: bytes | None) -> None:
        self._path = path
        self._pending = path.with_name(f"{path.name}.rotated")
        self._passphrase = passphrase

    @property
    def is_pending(self) -> bool:
        """Whether the key under a new passphrase waits for its place."""
        return bool(self.leftovers)

    @property
    def leftovers(self) -> list[Path]:
        """The files of a rotation that are there."""
        return [self._pending] if self._pending.exists() else []

    def opened(self, known: Sequence[bytes]) -> Signer | None:
        """Return the key, where it is here and one of these passphrases opens it.

        Raises PrivateFileError.
        """
        return _opened(self._path, known)

    def prepare(self, known: Sequence[bytes]) -> None:
        """Encrypt the key anew, beside the old file, by one of the passphrases that are known.

        Raises ConfigurationError where none of them opens it, PrivateFileError.
        """
        if self._passphrase is None or not self._path.exists():
            return
        if any(
            _opened(path, [self._passphrase]) and is_root_key_slow_to_guess(path)
            for path in (self._pending, self._path)
        ):
            return
        signer = _opened(self._path, [*known, self._passphrase])
        if signer is None:
            raise self._locked()
        pem = signer.encrypted_pem(self._passphrase)
        write_private_file(self._pending, pem.encode(), replace=True)

    def put_in_place(self) -> PassphraseChange:
        """Let what was prepared take the file's place.

        Raises ConfigurationError, with nothing removed, where the file has another passphrase then.
        """
        if self._passphrase is not None and _opened(self._pending, [self._passphrase]):
            self._pending.replace(self._path)
            sync_directory(self._path.parent)
        if not self._path.exists():
            return PassphraseChange.NOT_HERE
        if self._passphrase is None:
            return PassphraseChange.NOT_WANTED
        if not _opened(self._path, [self._passphrase]):
            raise self._locked()
        self._pending.unlink(missing_ok=True)
        return PassphraseChange.CHANGED

    def _locked(self) -> ConfigurationError:
        return ConfigurationError(
            f"{self._path} does not open with the passphrase in force. Set CA_PASSWORD to its"
            " own, or move the file to a safe place first."
        )


def is_root_key_slow_to_guess(path: Path) -> bool:
    """Say whether a root's key file that is there costs as much per guess as it is to."""
    return is_slow_to_guess(_read(path))


def read_root_key(path: Path, passphrase: Callable[[], bytes]) -> bytes:
    """Return a root's key for another place, encrypted anew where it is quick to guess at.

    Raises ConfigurationError where it is, and the passphrase is not its own; PrivateFileError.
    """
    pem = _read(path)
    if not is_slow_to_guess(pem):
        signer = _opened(path, [passphrase()])
        if signer is None:
            raise ConfigurationError(
                f"{path} is quick to guess at, as it is encrypted as older versions did, and"
                " CA_PASSWORD does not open it. Set CA_PASSWORD to its own, or leave the keys out."
            )
        pem = signer.encrypted_pem(passphrase())
    return pem.encode()


def strengthen_root_key(path: Path, passphrase: Callable[[], bytes]) -> bool:
    """Encrypt a root's key file anew, in its place, where it is quick to guess at; say whether.

    Raises ConfigurationError where the passphrase is not its own, PrivateFileError.
    """
    if not path.exists() or is_root_key_slow_to_guess(path):
        return False
    write_private_file(path, read_root_key(path, passphrase), replace=True)
    return True


def _read(path: Path) -> str:
    return read_private_file(path).decode("ascii", "replace")


def _opened(path: Path, passphrases: Sequence[bytes]) -> Signer | None:
    if not path.exists():
        return None
    pem = _read(path)
    for passphrase in passphrases:
        try:
            return load_encrypted(pem, passphrase)
        except WrongSecretError:
            continue
    return None
