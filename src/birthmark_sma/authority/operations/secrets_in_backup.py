"""The secrets that a backup may contain: copy them into it, and put them back.

`backup` and `restore` call this module. A file that exists is never overwritten, and no passphrase
is ever lost.
"""

from pathlib import Path
from typing import Final

from birthmark_sma.authority.ca.ceremony import (
    ROOT_KEY_FILE,
    root_key_file,
    root_key_files,
    root_key_path,
)
from birthmark_sma.authority.ca.root_key_file import read_root_key
from birthmark_sma.authority.ca.store import FIRST_ROOT
from birthmark_sma.authority.kek.passphrase_file import (
    PASSPHRASE_FILE,
    PassphraseFile,
    find_passphrase,
)
from birthmark_sma.authority.operations.backup_manifest import (
    FileInBackup,
    FileName,
    Manifest,
    measure,
)
from birthmark_sma.config import Settings
from birthmark_sma.errors import BackupPlaceTakenError
from birthmark_sma.runtime.secret_files import (
    make_private_directory,
    read_private_file,
    write_private_file,
)

_ROOT_KEY: Final = Path(ROOT_KEY_FILE).stem
_PREVIOUS_PASSPHRASES_FILE: Final = "ca-password.previous"


def secret_places(settings: Settings) -> dict[FileName, Path]:
    """Return the path of each secret that a backup can contain, by its name there.

    With PostgreSQL the passphrase comes from a setting, so files of passphrases belong to an
    authority on SQLite in the same data directory.
    """
    root_keys: dict[FileName, Path] = {
        _name_in_backup(settings, path): path for path in root_key_files(settings)
    }
    if not settings.uses_sqlite:
        return root_keys
    return {
        PASSPHRASE_FILE: settings.data_dir / PASSPHRASE_FILE,
        _PREVIOUS_PASSPHRASES_FILE: PassphraseFile.of(settings).previous,
        **root_keys,
    }


def _name_in_backup(settings: Settings, path: Path) -> FileName:
    """Return the name of a root's key file: that of the first root, with the root's number."""
    number = path.stem.removeprefix(root_key_file(settings).stem)
    return f"{_ROOT_KEY}{number}{Path(ROOT_KEY_FILE).suffix}"


def _places_in(settings: Settings, manifest: Manifest) -> dict[FileName, Path]:
    """Return the places of the secrets, with those of all root keys that the backup has."""
    later = (name for name in manifest.files if name.startswith(f"{_ROOT_KEY}-"))
    roots = {
        name: root_key_path(settings, FIRST_ROOT + Path(name).stem.removeprefix(_ROOT_KEY))
        for name in later
    }
    return secret_places(settings) | roots


def copy_secrets(settings: Settings, folder: Path) -> dict[FileName, FileInBackup]:
    """Copy the secrets that exist into the folder of a backup; return their sizes and checksums."""
    copied = {}
    for name, place in secret_places(settings).items():
        if place.exists():
            if name.startswith(_ROOT_KEY):
                content = read_root_key(place, lambda: find_passphrase(settings))
            else:
                content = read_private_file(place)
            write_private_file(folder / name, content)
            copied[name] = measure(folder / name, lambda _, __: None)
    return copied


def check_secrets_free(settings: Settings, folder: Path, manifest: Manifest) -> None:
    """Raise BackupPlaceTakenError if a secret of the backup would replace a different one."""
    for name, place in _places_in(settings, manifest).items():
        if (
            name in manifest.files
            and name != _PREVIOUS_PASSPHRASES_FILE  # these are added to those that are there
            and place.exists()
            and read_private_file(place) != read_private_file(folder / name)
        ):
            raise BackupPlaceTakenError(f"{place} exists already and is never overwritten.")


def place_secrets(settings: Settings, folder: Path, manifest: Manifest) -> None:
    """Copy the secrets in the backup to their places; existing files stay unchanged.

    Only earlier passphrases are added to those that are there.
    """
    for name, place in _places_in(settings, manifest).items():
        if name not in manifest.files:
            continue
        make_private_directory(place.parent)
        content = read_private_file(folder / name)
        if name == _PREVIOUS_PASSPHRASES_FILE:
            PassphraseFile.of(settings).add_previous(content.split())
        elif not place.exists():
            write_private_file(place, content)
