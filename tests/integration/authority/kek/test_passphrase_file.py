"""CA_PASSWORD: given, or made once beside the SQLite file, and never quietly absent."""

import stat
from pathlib import Path

import pytest

from birthmark_sma.authority.initialisation import initialise
from birthmark_sma.authority.kek.passphrase_file import (
    PASSPHRASE_FILE,
    find_or_make_passphrase,
    find_passphrase,
)
from birthmark_sma.config import Settings
from birthmark_sma.errors import ConfigurationError, PrivateFileError
from birthmark_sma.storage.engine import open_database
from tests.support.authorities import openssl, quiet, rows_of, small_settings
from tests.support.devices.actors import ACTOR


def without_passphrase(folder: Path, database_url: str | None = None) -> Settings:
    """Settings in which nobody gave a passphrase."""
    return small_settings(folder, database_url, ca_password=None, data_dir=folder / "data")


def test_sqlite_gets_one_passphrase_for_ever(tmp_path: Path) -> None:
    """Threats 5 and 29: made once, at random, in a file of mode 0600 in a directory of 0700."""
    settings = without_passphrase(tmp_path)
    made = find_or_make_passphrase(settings)
    path = settings.data_dir / PASSPHRASE_FILE
    assert len(made) >= 32
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert find_or_make_passphrase(settings) == find_passphrase(settings) == made
    (tmp_path / "elsewhere").mkdir()
    assert find_or_make_passphrase(without_passphrase(tmp_path / "elsewhere")) != made


def test_the_generated_passphrase_opens_the_root_key(tmp_path: Path) -> None:
    """An operator can pass the file to OpenSSL as it is."""
    settings = without_passphrase(tmp_path)
    held = initialise(settings, quiet, actor=ACTOR)
    assert held is not None
    opened = openssl(
        "pkey",
        "-in",
        held.root_key_file,
        "-passin",
        f"file:{settings.data_dir / PASSPHRASE_FILE}",
        "-noout",
    )
    assert opened.returncode == 0, opened.stderr


def test_a_given_passphrase_beats_the_file(tmp_path: Path) -> None:
    """And no file is made where one is given."""
    given = small_settings(tmp_path, None, ca_password="given", data_dir=tmp_path / "given")
    assert find_or_make_passphrase(given) == b"given"
    assert not given.data_dir.exists()
    find_or_make_passphrase(without_passphrase(tmp_path))
    both = small_settings(tmp_path, None, ca_password="given ✓", data_dir=tmp_path / "data")
    assert find_passphrase(both) == "given ✓".encode()


def test_a_passphrase_file_open_to_others_is_refused(tmp_path: Path) -> None:
    """Threat 29: it is not used, and not replaced either."""
    settings = without_passphrase(tmp_path)
    made = find_or_make_passphrase(settings)
    path = settings.data_dir / PASSPHRASE_FILE
    path.chmod(0o644)
    for find in (find_passphrase, find_or_make_passphrase):
        with pytest.raises(PrivateFileError, match="chmod 600"):
            find(settings)
    assert path.read_bytes().strip() == made


def test_an_existing_authority_gets_no_new_passphrase(tmp_path: Path) -> None:
    """A lost file is told, and not replaced by one that opens nothing."""
    settings = without_passphrase(tmp_path).model_copy(update={"kek_file": None})
    initialise(settings, quiet, actor=ACTOR)
    path = settings.data_dir / PASSPHRASE_FILE
    path.unlink()
    with pytest.raises(ConfigurationError, match="CA_PASSWORD is not set"):
        find_passphrase(settings)
    with pytest.raises(ConfigurationError, match="CA_PASSWORD is not set"):
        initialise(settings, quiet, actor=ACTOR)
    assert not path.exists()


@pytest.mark.parametrize("with_kek_file", [True, False])
def test_postgresql_needs_a_passphrase(
    tmp_path: Path, postgres_url: str, with_kek_file: bool
) -> None:
    """Threat 5: without CA_PASSWORD nothing is founded, no key is made, no file is written."""
    settings = without_passphrase(tmp_path, postgres_url)
    if not with_kek_file:
        settings = settings.model_copy(update={"kek_file": None})
    with pytest.raises(ConfigurationError, match="CA_PASSWORD is not set"):
        initialise(settings, quiet, actor=ACTOR)
    assert not settings.data_dir.exists()
    assert {path.name for path in tmp_path.iterdir()} == {"key-encryption.key"}
    database = open_database(postgres_url)
    assert rows_of(database, "SELECT tablename FROM pg_tables WHERE schemaname = 'public'") == []
    database.close()
