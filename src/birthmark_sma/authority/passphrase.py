"""CA_PASSWORD: given, or on a laptop made once and kept beside the SQLite file."""

import secrets

from birthmark_sma.config import Settings
from birthmark_sma.errors import ConfigurationError
from birthmark_sma.storage.private_files import (
    make_private_directory,
    read_private_file,
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
    return read_private_file(path).strip()


def find_or_make_passphrase(settings: Settings) -> bytes:
    """Return the passphrase for a new authority; on a laptop, make one where none is given."""
    path = settings.data_dir / PASSPHRASE_FILE
    if settings.ca_password is None and settings.uses_sqlite and not path.exists():
        make_private_directory(settings.data_dir)
        write_private_file(path, secrets.token_urlsafe(32).encode() + b"\n")
    return find_passphrase(settings)
