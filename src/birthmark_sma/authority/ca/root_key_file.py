"""The file of the root's private key: read it, and change its passphrase without a risk of loss.

Called by the rotation of secrets, `sma init`, `sma ca` and backups. A rotation keeps the key under
the new passphrase in a second file until its end. A crash at any point must leave a file that a
known passphrase decrypts. The server never uses this module to load the key.
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
    """The result of a change of the root key's passphrase."""

    CHANGED = "changed"
    NOT_HERE = "not here"
    NOT_WANTED = "not wanted"


class RootKey:
    """The file of the root's key, and its new passphrase, or None to keep the old one."""

    def __init__(self, path: Path, passphrase: bytes | None) -> None:
        self._path = path
        self._pending = path.with_name(f"{path.name}.rotated")
        self._passphrase = passphrase

    @property
    def is_pending(self) -> bool:
        """True if a rotation has prepared a file that is not in place yet."""
        return bool(self.leftovers)

    @property
    def leftovers(self) -> list[Path]:
        """The existing files of an unfinished rotation."""
        return [self._pending] if self._pending.exists() else []

    def opened(self, known: Sequence[bytes]) -> Signer | None:
        """Return the key, or None if the file is missing or none of the passphrases decrypts it.

        Raises PrivateFileError.
        """
        return _opened(self._path, known)

    def prepare(self, known: Sequence[bytes]) -> None:
        """Write the key, encrypted under the new passphrase, to a second file.

        `known` are the passphrases to decrypt it with. Do nothing without a new passphrase or
        without the file, or if one of the two files has the new passphrase and a slow key
        derivation already. Raises ConfigurationError if no passphrase decrypts the key, and
        PrivateFileError.
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
        """Replace the file by the prepared one, and return the result of the change.

        Raises ConfigurationError, with nothing removed, if the file then has another passphrase
        than the new one.
        """
        # A prepared file with another passphrase is of an interrupted rotation to another secret.
        if self._passphrase is not None and _opened(self._pending, [self._passphrase]):
            self._pending.replace(self._path)
            sync_directory(self._path.parent)
        if not self._path.exists():
            return PassphraseChange.NOT_HERE
        if self._passphrase is None:
            return PassphraseChange.NOT_WANTED
        # Remove the prepared file last, once the file in place is proven to open.
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
    """Return whether guessing the passphrase of an existing root key file is slow enough.

    Files of older versions use 2,048 rounds of PBKDF2, which is too fast. Raises PrivateFileError.
    """
    return is_slow_to_guess(_read(path))


def read_root_key(path: Path, passphrase: Callable[[], bytes]) -> bytes:
    """Return the encrypted root key as PEM, for a copy of the file.

    If its key derivation is too fast, encrypt it again under the same passphrase. Raises
    ConfigurationError if that is necessary and the passphrase is wrong, and PrivateFileError.
    """
    pem = _read(path)
    if not is_slow_to_guess(pem):
        signer = _opened(path, [passphrase()])
        if signer is None:
            raise ConfigurationError(
                f"The passphrase of {path} is fast to guess, because an older version encrypted"
                " it, and CA_PASSWORD does not open it. Set CA_PASSWORD to its passphrase, or leave"
                " the keys out."
            )
        pem = signer.encrypted_pem(passphrase())
    return pem.encode()


def strengthen_root_key(path: Path, passphrase: Callable[[], bytes]) -> bool:
    """Encrypt the root's key file again, in place, if its key derivation is too fast.

    Return True if that was done. Raises ConfigurationError if the passphrase is wrong, and
    PrivateFileError.
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
