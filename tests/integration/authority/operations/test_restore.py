"""A restore that fails after its proof says which files it leaves behind."""

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, NoReturn

import pytest

from birthmark_sma.authority.initialisation import initialise
from birthmark_sma.authority.operations import restore
from birthmark_sma.authority.operations.backup import make_backup
from birthmark_sma.authority.operations.backup_manifest import Progress
from birthmark_sma.authority.operations.restore import restore_backup
from birthmark_sma.authority.operations.secrets_in_backup import place_secrets
from birthmark_sma.config import Settings
from birthmark_sma.errors import BackupError, BackupPlaceTakenError
from tests.support.authorities import quiet, small_settings
from tests.support.devices.actors import ACTOR
from tests.support.schemas import give_schema

SECRETS = {"ca-password", "simulated-mfg-root-ca.key"}


@contextmanager
def no_bar(_label: str, _unit: Literal["bytes", "steps"]) -> Iterator[Progress]:
    """Show nothing."""
    yield lambda _done, _total: None


def settings_in(folder: Path) -> Settings:
    """The settings of an authority on SQLite whose passphrase is in the data directory."""
    settings = small_settings(folder, None, ca_password=None, data_dir=folder / "data")
    return settings.model_copy(update={"kek_file": None})


@pytest.fixture(scope="module")
def backups(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A backup with secrets and one without, of the same authority."""
    folder = tmp_path_factory.mktemp("original")
    settings = settings_in(folder)
    give_schema(settings.resolved_database_url)
    initialise(settings, quiet, actor=ACTOR)
    make_backup(settings, folder / "with", no_bar, with_secrets=True)
    make_backup(settings, folder / "without", no_bar, with_secrets=False)
    return folder


@pytest.fixture
def target(tmp_path: Path) -> Settings:
    """The settings of the place to restore into."""
    return settings_in(tmp_path)


def names_in(settings: Settings) -> set[str]:
    """The names of all files in the data directory."""
    return {path.name for path in settings.data_dir.iterdir()}


def full(*_: object) -> NoReturn:
    """Fail as a full disk does."""
    raise OSError(errno.ENOSPC, "No space left on device")


def assert_names_all(error: BackupError | BackupPlaceTakenError, settings: Settings) -> None:
    """Every secret that is there is in the message."""
    assert names_in(settings) >= SECRETS
    assert "Nothing is left" not in str(error)
    for name in SECRETS:
        assert str(settings.data_dir / name) in str(error)


def test_no_room_for_the_name(
    backups: Path, target: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The secrets are there, as the message says, and the same command completes the restore."""
    with monkeypatch.context() as filled:
        filled.setattr(Path, "hardlink_to", full)
        with pytest.raises(BackupError, match="cannot be written: No space left") as refused:
            restore_backup(target, backups / "with", no_bar, actor=ACTOR)
    assert_names_all(refused.value, target)
    assert names_in(target) == SECRETS
    restore_backup(target, backups / "with", no_bar, actor=ACTOR)
    assert names_in(target) == SECRETS | {"sma.db", "authority.json"}


def test_no_room_for_the_name_and_no_secrets(
    backups: Path, target: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without secrets in the backup nothing is left, and the message says so."""
    passphrase = (backups / "data" / "ca-password").read_text().strip()
    target = Settings(**target.model_dump(exclude_unset=True) | {"ca_password": passphrase})
    monkeypatch.setattr(Path, "hardlink_to", full)
    with pytest.raises(BackupError, match="Nothing is left there"):
        restore_backup(target, backups / "without", no_bar, actor=ACTOR)
    assert names_in(target) == set()


def test_a_database_that_was_made_meanwhile(
    backups: Path, target: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not overwritten, and the message names the secrets that are there beside it."""

    def place_and_be_overtaken(settings: Settings, *arguments: object) -> None:
        place_secrets(settings, *arguments)  # type: ignore[arg-type]
        (settings.data_dir / "sma.db").write_bytes(b"of another program")

    monkeypatch.setattr(restore, "place_secrets", place_and_be_overtaken)
    with pytest.raises(BackupPlaceTakenError, match=re.escape("sma.db exists already")) as refused:
        restore_backup(target, backups / "with", no_bar, actor=ACTOR)
    assert_names_all(refused.value, target)
    assert (target.data_dir / "sma.db").read_bytes() == b"of another program"


def test_a_directory_that_cannot_be_synchronised(
    backups: Path, target: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The database is there too."""
    monkeypatch.setattr(restore, "sync_directory", full)
    with pytest.raises(BackupError, match=re.escape("sma.db is restored, but")) as refused:
        restore_backup(target, backups / "with", no_bar, actor=ACTOR)
    assert_names_all(refused.value, target)
    assert names_in(target) == SECRETS | {"sma.db"}
