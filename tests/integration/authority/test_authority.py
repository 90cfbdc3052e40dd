"""Wiring: what an authority needs to open, what it says where that is missing, what it leaves."""

import gc
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from birthmark_sma.authority.access.caller import Caller
from birthmark_sma.authority.authority import open_authority, opened_database
from birthmark_sma.authority.initialisation import initialise, is_initialised
from birthmark_sma.config import Settings
from birthmark_sma.errors import (
    BirthmarkError,
    ConfigurationError,
    DatabaseUnavailableError,
    KeyTablesError,
    NotInitialisedError,
    SchemaMismatchError,
    WrongSecretError,
)
from birthmark_sma.protocol.verdict import Verdict
from birthmark_sma.storage.engine import open_database
from birthmark_sma.storage.migration import migrate
from tests.support.authorities import (
    PASSPHRASE,
    execute,
    new_authority,
    new_camera,
    opened,
    quiet,
    rows_of,
    small_settings,
)
from tests.support.devices.actors import ACTOR


def test_from_nothing_to_a_verdict(settings: Settings) -> None:
    """Founded, opened, a device provisioned, its token passed; and passed again after a close."""
    with new_authority(settings) as authority:
        camera = new_camera(authority, "camera")
        token = camera.token()
        assert authority.validator.submit(token, Caller(None)).result(30).verdict is Verdict.PASS
    with opened(settings) as authority:
        assert authority.validator.submit(token, Caller(None)).result(30).verdict is Verdict.PASS


def test_with_a_passphrase_alone(tmp_path: Path, database_url: str) -> None:
    """Without a key file, CA_PASSWORD wraps the tables as well."""
    settings = small_settings(tmp_path, database_url).model_copy(update={"kek_file": None})
    with new_authority(settings) as authority:
        token = new_camera(authority, "camera").token()
    with opened(settings) as authority:
        assert authority.validator.submit(token, Caller(None)).result(30).verdict is Verdict.PASS
    wrong = settings.model_copy(
        update={"ca_password": small_settings(tmp_path, None, ca_password="wrong").ca_password}
    )
    with pytest.raises(WrongSecretError):
        open_authority(wrong)


def test_progress_is_told(settings: Settings) -> None:
    """A person at a terminal sees the key tables grow to their number."""
    seen: list[tuple[int, int]] = []
    initialise(settings, lambda *progress: seen.append(progress), actor=ACTOR)
    assert seen[-1] == (settings.tables, settings.tables)
    assert seen == sorted(seen)


# --- what is missing


def test_an_empty_database(settings: Settings) -> None:
    """The message says what to type."""
    with pytest.raises(SchemaMismatchError, match="Type: sma init"):
        open_authority(settings)


def test_a_database_without_an_authority(settings: Settings) -> None:
    """Migrated is not founded."""
    database = open_database(settings.resolved_database_url)
    migrate(database)
    database.close()
    assert not is_initialised(settings)
    with pytest.raises(NotInitialisedError, match="Type: sma init"):
        open_authority(settings)


def test_an_authority_is_initialised_once_it_is_whole(settings: Settings) -> None:
    """With some key tables missing it is not, and then a run of `sma init` completes it."""
    initialise(settings, quiet, actor=ACTOR)
    assert is_initialised(settings)
    with opened_database(settings) as database:
        execute(database, "DELETE FROM key_tables WHERE table_id > 2")
    assert not is_initialised(settings)
    with pytest.raises(KeyTablesError):
        open_authority(settings)
    initialise(settings, quiet, actor=ACTOR)
    assert is_initialised(settings)


def test_asking_makes_no_file(tmp_path: Path) -> None:
    """Whether there is an authority can be asked without leaving an empty database behind."""
    settings = small_settings(tmp_path, None, data_dir=tmp_path / "data")
    assert not is_initialised(settings)
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"kek_file": None}, ConfigurationError),
        ({"tables": 7, "keys_per_table": 16}, ConfigurationError),
    ],
    ids=["no key file", "another size"],
)
def test_what_does_not_fit_is_refused(
    settings: Settings, change: dict[str, Any], error: type[BirthmarkError]
) -> None:
    """With a sentence, and without the secret; and afterwards what fits still opens."""
    initialise(settings, quiet, actor=ACTOR)
    with pytest.raises(error) as refused:
        open_authority(small_settings(settings.data_dir, settings.resolved_database_url, **change))
    assert PASSPHRASE not in str(refused.value)
    assert "wr0ng" not in str(refused.value)
    with opened(settings) as authority:
        assert authority.table_sizes == settings.table_sizes


@pytest.mark.parametrize(
    ("passphrase", "error"), [("wr0ng", WrongSecretError), (None, ConfigurationError)]
)
def test_a_passphrase_that_does_not_fit(
    settings: Settings, passphrase: str | None, error: type[BirthmarkError]
) -> None:
    """One sentence, nothing of the secret in it, and the authority as it was."""
    by_passphrase = settings.model_copy(update={"kek_file": None})
    initialise(by_passphrase, quiet, actor=ACTOR)
    wrong = small_settings(
        settings.data_dir, settings.resolved_database_url, kek_file=None, ca_password=passphrase
    )
    with pytest.raises(error) as refused:
        open_authority(wrong)
    assert "wr0ng" not in str(refused.value)
    assert str(refused.value).count(". ") <= 1
    with opened(by_passphrase):
        pass


def test_with_a_key_file_the_server_needs_no_passphrase(settings: Settings) -> None:
    """Threat 5: CA_PASSWORD then encrypts the root's key alone, and can be kept away as well."""
    initialise(settings, quiet, actor=ACTOR)
    with opened(settings.model_copy(update={"ca_password": None})) as authority:
        new_camera(authority, "camera")


def test_another_authority_s_key_file(settings: Settings, tmp_path: Path) -> None:
    """A wrong key is noticed at the start and not at the first token."""
    initialise(settings, quiet, actor=ACTOR)
    assert settings.kek_file is not None
    kept = settings.kek_file.read_bytes()
    settings.kek_file.write_bytes(kept[::-1])
    with pytest.raises(WrongSecretError):
        open_authority(settings)
    settings.kek_file.write_bytes(kept)
    with opened(settings):
        pass


def test_a_schema_of_another_version(settings: Settings) -> None:
    """A newer program's database is left alone by opening, asking and initialising."""
    initialise(settings, quiet, actor=ACTOR)
    database = open_database(settings.resolved_database_url)
    execute(database, "UPDATE alembic_version SET version_num = '9999'")
    uses: list[Callable[[Settings], Any]] = [
        open_authority,
        is_initialised,
        lambda given: initialise(given, quiet, actor=ACTOR),
    ]
    for use in uses:
        with pytest.raises(SchemaMismatchError, match="newer program"):
            use(settings)
    assert rows_of(database, "SELECT version_num FROM alembic_version") == [("9999",)]
    database.close()


def test_an_outage_is_not_an_empty_database(tmp_path: Path) -> None:
    """Threat 19: nobody is told to found a second authority because the database is away."""
    settings = small_settings(tmp_path, "postgresql://sma:x@127.0.0.1:1/sma")
    uses: list[Callable[[Settings], Any]] = [
        open_authority,
        is_initialised,
        lambda given: initialise(given, quiet, actor=ACTOR),
    ]
    for use in uses:
        with pytest.raises(DatabaseUnavailableError):
            use(settings)
    assert {path.name for path in tmp_path.iterdir()} == {"key-encryption.key"}


# --- what is left


def test_closing_leaves_no_thread(settings: Settings) -> None:
    """Neither writers nor signers stay behind."""
    before = set(threading.enumerate())
    with new_authority(settings) as authority:
        new_camera(authority, "camera")
        assert set(threading.enumerate()) > before
        assert authority.validator.writer.running
    assert set(threading.enumerate()) <= before
    assert not authority.validator.writer.running


def test_a_refused_opening_leaves_no_connection(tmp_path: Path, postgres_url: str) -> None:
    """A supervisor that tries again and again does not use up the server."""
    settings = small_settings(tmp_path, postgres_url, kek_file=None)
    initialise(settings, quiet, actor=ACTOR)
    wrong = small_settings(tmp_path, postgres_url, kek_file=None, ca_password="another")
    before = set(threading.enumerate())
    for _ in range(5):
        with pytest.raises(WrongSecretError):
            open_authority(wrong)
    gc.collect()
    assert set(threading.enumerate()) == before
    database = open_database(postgres_url)
    others = (
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    for _ in range(100):
        if rows_of(database, others) == [(0,)]:
            break
        threading.Event().wait(0.02)
    assert rows_of(database, others) == [(0,)]
    database.close()


def test_two_programs_on_one_database(settings: Settings) -> None:
    """What one provisions, the other validates at once."""
    with new_authority(settings) as one, opened(settings) as other:
        assert one.root == other.root
        for number, (first, second) in enumerate([(one, other), (other, one)]):
            token = new_camera(first, f"camera-{number}").token()
            assert second.validator.submit(token, Caller(None)).result(30).verdict is Verdict.PASS


def test_nothing_shown_is_secret(settings: Settings) -> None:
    """Threat 28: an authority and its parts can be printed."""
    with new_authority(settings) as authority:
        shown = repr(authority) + repr(authority.settings) + repr(authority.issuer)
        for table_id in range(settings.tables):
            assert authority.table_cache.keys.current[table_id].master_key.hex() not in shown
        assert PASSPHRASE not in shown
        assert "PRIVATE" not in shown
