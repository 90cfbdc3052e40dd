"""CA_PASSWORD: given, or on a laptop made once and kept beside the SQLite file."""

import os
import secrets
from pathlib import Path

from birthmark_sma.config import Settings
from birthmark_sma.errors import ConfigurationError
from birthmark_sma.runtime.secret_files import (
    make_private_directory,
    read_private_file,
    sync_directory,
    write_private_file,
)

PASSPHRASE_FILE = "ca-password"  # noqa: S105  a file name


def find_passphrase(settings: Settings) -> bytes:
    """Return the passphrase of an existing authority.

    Raises ConfigurationError where none is given and none was made, PrivateFileError where the
    file is open to others.
    """
    if settings.ca_password is not None:
        return settings.ca_password.get_secret_value().encode()
    path = settings.data_dir / PASSPHRASE_FILE
    if not settings.uses_sqlite:
        raise ConfigurationError(
            "CA_PASSWORD is not set. With PostgreSQL there is no place to keep a generated one:"
            " set CA_PASSWORD to a long random passphrase, and keep it as well as the database."
        )
    if not path.exists():
        raise ConfigurationError(
            f"CA_PASSWORD is not set, and {path} is not there: give the CA_PASSWORD that this"
            " authority was initialised with."
        )
    return _read(path)


def find_given_passphrase(settings: Settings) -> bytes | None:
    """Return the passphrase for a new authority; None where one would be made.

    Raises as `find_passphrase`.
    """
    path = settings.data_dir / PASSPHRASE_FILE
    if settings.ca_password is None and settings.uses_sqlite and not path.exists():
        return None
    return find_passphrase(settings)


def find_or_make_passphrase(settings: Settings) -> bytes:
    """Return the passphrase for a new authority; on a laptop, make one where none is given."""
    given = find_given_passphrase(settings)
    if given is not None:
        return given
    made = _made()
    make_private_directory(settings.data_dir)
    write_private_file(settings.data_dir / PASSPHRASE_FILE, made + b"\n")
    return made


class PassphraseFile:
    """The passphrase that was made on a laptop, and the one that takes its place in a rotation.

    The new one waits beside it; the old one stays until the rotation has come to its end. Then it
    is kept in a file of its own: backups from before open with it alone, and nobody ever saw it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._new = path.with_name(f"{path.name}.new")
        self._old = path.with_name(f"{path.name}.old")
        self.previous = path.with_name(f"{path.name}.previous")
        """A line for each passphrase that was in force before, the newest first."""

    @classmethod
    def of(cls, settings: Settings) -> "PassphraseFile":
        """Return the file where one that was made is kept, whether it is there or not."""
        return cls(settings.data_dir / PASSPHRASE_FILE)

    @classmethod
    def in_force(cls, settings: Settings) -> "PassphraseFile | None":
        """Return the file, where it is what gives the passphrase."""
        file = cls.of(settings)
        used = settings.ca_password is None and settings.uses_sqlite and file._path.exists()
        return file if used else None

    @property
    def has_old(self) -> bool:
        """Whether a rotation has put a new one in place, and not come to its end."""
        return self._old.exists()

    @property
    def leftovers(self) -> list[Path]:
        """The files of a rotation that are there."""
        return [path for path in (self._new, self._old) if path.exists()]

    def current(self) -> bytes:
        """The passphrase in place."""
        return _read(self._path)

    def kept(self) -> list[bytes]:
        """Those of a rotation that has not come to its end."""
        return [_read(path) for path in self.leftovers]

    def successor(self) -> bytes:
        """The one that an earlier run has prepared, or else a new one."""
        return _read(self._new) if self._new.exists() else _made()

    def prepare(self, passphrase: bytes) -> None:
        """Keep the new one beside the old one. Raises PrivateFileError."""
        if passphrase == self.current():
            return
        if not self._new.exists() or _read(self._new) != passphrase:
            write_private_file(self._new, passphrase + b"\n", replace=True)

    def put_in_place(self, passphrase: bytes) -> None:
        """Let the new one take the place of the old one, which is kept.

        Only where it is `passphrase`: another one was left by a rotation that was cut off.
        """
        if self._new.exists() and _read(self._new) == passphrase:
            if not self._old.exists():
                os.link(self._path, self._old)
            self._new.replace(self._path)
            sync_directory(self._path.parent)

    def keep_old(self) -> None:
        """Remove what the rotation left, and keep the old one among the previous ones."""
        if self._old.exists():
            self._keep(_read(self._old))
        for path in self.leftovers:
            path.unlink()
        sync_directory(self._path.parent)

    def list_previous(self) -> list[bytes]:
        """Return the passphrases that were in force before, the newest first."""
        return read_private_file(self.previous).split() if self.previous.exists() else []

    def forget_previous(self) -> int:
        """Remove them; return how many there were."""
        number = len(self.list_previous())
        if number:
            self.previous.unlink()
            sync_directory(self._path.parent)
        return number

    def reinstate(self, passphrase: bytes) -> None:
        """Put a previous one in place again, for a backup that it opens; keep the one in force."""
        self._keep(self.current())
        write_private_file(self._path, passphrase + b"\n", replace=True)

    def _keep(self, passphrase: bytes) -> None:
        kept = self.list_previous()
        if passphrase not in kept:
            lines = b"".join(each + b"\n" for each in (passphrase, *kept))
            write_private_file(self.previous, lines, replace=True)


def _made() -> bytes:
    return secrets.token_urlsafe(32).encode()


def _read(path: Path) -> bytes:
    return read_private_file(path).strip()
