"""The passphrase CA_PASSWORD: from the settings, or from a file that is generated beside SQLite.

Called by everything that needs the passphrase, and by rotations and restores. With PostgreSQL no
passphrase is ever generated. A passphrase must never be lost: a new one is in its file before an
old one is replaced.
"""

import os
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from birthmark_sma.config import Settings
from birthmark_sma.errors import ConfigurationError
from birthmark_sma.runtime.secret_files import (
    make_private_directory,
    read_private_file,
    sync_directory,
    write_private_file,
)

PASSPHRASE_FILE: Final = "ca-password"  # noqa: S105  a file name


def find_passphrase(settings: Settings) -> bytes:
    """Return the passphrase of an existing authority.

    Raises ConfigurationError if CA_PASSWORD is not set and there is no file, and PrivateFileError
    if others can read the file.
    """
    if settings.ca_password is not None:
        return settings.ca_password.get_secret_value().encode()
    path = settings.data_dir / PASSPHRASE_FILE
    if not settings.uses_sqlite:
        raise ConfigurationError(
            "CA_PASSWORD is not set. Set it to a long random passphrase, because none is generated"
            " with PostgreSQL, and keep it as safe as the database."
        )
    if not path.exists():
        raise ConfigurationError(
            f"CA_PASSWORD is not set, and {path} does not exist. Set the CA_PASSWORD that this"
            " authority was initialised with."
        )
    return _read(path)


def find_given_passphrase(settings: Settings) -> bytes | None:
    """Return the passphrase for a new authority, or None if one would be generated.

    Raises as `find_passphrase`.
    """
    path = settings.data_dir / PASSPHRASE_FILE
    if settings.ca_password is None and settings.uses_sqlite and not path.exists():
        return None
    return find_passphrase(settings)


def find_or_make_passphrase(settings: Settings) -> bytes:
    """Return the passphrase for a new authority. With SQLite, generate one if none is given.

    A generated passphrase is written to its file. Raises as `find_passphrase`.
    """
    given = find_given_passphrase(settings)
    if given is not None:
        return given
    made = _made()
    make_private_directory(settings.data_dir)
    write_private_file(settings.data_dir / PASSPHRASE_FILE, made + b"\n")
    return made


class PassphraseFile:
    """The file of a generated passphrase, and the files beside it during and after a rotation.

    A rotation writes the new passphrase to `.new`, then moves it into place and keeps the old one
    as `.old`. At its end the old one becomes a line of `.previous`. It is kept there because no
    person has ever seen it, and backups from before the rotation need it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._new = path.with_name(f"{path.name}.new")
        self._old = path.with_name(f"{path.name}.old")
        self.previous = path.with_name(f"{path.name}.previous")
        """The file with one line for each earlier passphrase, the newest first."""

    @classmethod
    def of(cls, settings: Settings) -> "PassphraseFile":
        """Return the file for a generated passphrase, even if it does not exist."""
        return cls(settings.data_dir / PASSPHRASE_FILE)

    @classmethod
    def in_force(cls, settings: Settings) -> "PassphraseFile | None":
        """Return the file if the passphrase comes from it, else None."""
        file = cls.of(settings)
        used = settings.ca_password is None and settings.uses_sqlite and file._path.exists()
        return file if used else None

    @property
    def has_old(self) -> bool:
        """True if a rotation has put a new passphrase in place but has not ended."""
        return self._old.exists()

    @property
    def leftovers(self) -> list[Path]:
        """The existing files of an unfinished rotation."""
        return [path for path in (self._new, self._old) if path.exists()]

    def current(self) -> bytes:
        """Return the passphrase in force. Raises PrivateFileError."""
        return _read(self._path)

    def kept(self) -> list[bytes]:
        """Return the new and the old passphrase of an unfinished rotation, as far as they exist."""
        return [_read(path) for path in self.leftovers]

    def successor(self) -> bytes:
        """Return the passphrase that an interrupted rotation prepared, or else generate one."""
        return _read(self._new) if self._new.exists() else _made()

    def prepare(self, passphrase: bytes) -> None:
        """Write the new passphrase to `.new`, unless it is in force. Raises PrivateFileError."""
        if passphrase == self.current():
            return
        if not self._new.exists() or _read(self._new) != passphrase:
            write_private_file(self._new, passphrase + b"\n", replace=True)

    def put_in_place(self, passphrase: bytes) -> None:
        """Move the new passphrase into place, and keep the old one as `.old`.

        Do nothing if `.new` has another passphrase: an interrupted rotation left it.
        """
        # Link the old file before it is replaced, so that a crash loses neither of the two. An
        # existing `.old` stays: it has the passphrase from before an interrupted rotation.
        if self._new.exists() and _read(self._new) == passphrase:
            if not self._old.exists():
                os.link(self._path, self._old)
            self._new.replace(self._path)
            sync_directory(self._path.parent)

    def keep_old(self) -> None:
        """Add the old passphrase to `.previous`, then remove `.new` and `.old`."""
        # In this order, so that a crash in between does not lose the old passphrase.
        if self._old.exists():
            self.add_previous([_read(self._old)])
        for path in self.leftovers:
            path.unlink()
        sync_directory(self._path.parent)

    def list_previous(self) -> list[bytes]:
        """Return the earlier passphrases, the newest first. Raises PrivateFileError."""
        return read_private_file(self.previous).split() if self.previous.exists() else []

    def forget_previous(self) -> None:
        """Remove the earlier passphrases, if there are any."""
        if self.previous.exists():
            self.previous.unlink()
            sync_directory(self._path.parent)

    def reinstate(self, passphrase: bytes) -> None:
        """Put an earlier passphrase in force again, for a backup that needs it.

        The one in force becomes an earlier one. It is written first, so that a crash does not lose
        it.
        """
        self.add_previous([self.current()])
        write_private_file(self._path, passphrase + b"\n", replace=True)

    def add_previous(self, passphrases: Sequence[bytes]) -> None:
        """Add earlier passphrases, the newest first, to those that are kept already."""
        kept = self.list_previous()
        new = [each for each in passphrases if each not in kept]
        if new:
            lines = b"".join(each + b"\n" for each in (*new, *kept))
            write_private_file(self.previous, lines, replace=True)


def _made() -> bytes:
    return secrets.token_urlsafe(32).encode()


def _read(path: Path) -> bytes:
    return read_private_file(path).strip()
