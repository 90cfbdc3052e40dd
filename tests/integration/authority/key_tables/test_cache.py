"""The key tables: populated once, never changed, and unreadable at rest."""

import base64
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection

from birthmark_sma.authority.access.caller import Caller
from birthmark_sma.authority.authority import open_authority
from birthmark_sma.authority.ca.ceremony import hold_ceremony
from birthmark_sma.authority.devices import store as device_store
from birthmark_sma.authority.initialisation import initialise, populate_tables
from birthmark_sma.authority.kek.sources import KekSecret
from birthmark_sma.authority.kek.wrapping import (
    KeyEncryptionKey,
    KeyEncryptionKeys,
    open_stored_secrets,
)
from birthmark_sma.authority.key_tables import cache as key_table_cache
from birthmark_sma.authority.key_tables.cache import open_key_table_cache, populate
from birthmark_sma.config import Settings
from birthmark_sma.errors import (
    ConfigurationError,
    KeyTablesError,
    NotInitialisedError,
    WrongSecretError,
)
from birthmark_sma.protocol import key_derivation
from birthmark_sma.storage.engine import Database
from tests.support.authorities import (
    KEYS_PER_TABLE,
    PASSPHRASE,
    TABLES,
    execute,
    new_authority,
    new_camera,
    opened,
    quiet,
    rows_of,
    small_settings,
)
from tests.support.cameras.camera import Camera
from tests.support.devices.actors import ACTOR


@pytest.fixture
def unpopulated(database: Database, settings: Settings) -> Database:
    """A database in which the ceremony was held, without key tables."""
    hold_ceremony(database, settings, actor=ACTOR)
    return database


def keks_of(database: Database, settings: Settings) -> KeyEncryptionKeys:
    """Return the key-encryption keys of an authority."""
    return open_stored_secrets(database, settings).keks


def nobody() -> KeyEncryptionKeys:
    """A key-encryption key that no authority has."""
    return KeyEncryptionKeys([KeyEncryptionKey(1, bytes(32))], KekSecret(lambda: b""))


def stored_tables(database: Database) -> list[tuple[Any, ...]]:
    """Return the key tables as they are stored."""
    query = "SELECT table_id, master_key, kek_id, created_at FROM key_tables ORDER BY table_id"
    return rows_of(database, query)


def master_keys(database: Database, settings: Settings) -> list[bytes]:
    """Return every master key."""
    table_cache = open_key_table_cache(database, keks_of(database, settings))
    return [
        table_cache.keys.current[table_id].master_key
        for table_id in range(table_cache.sizes.tables)
    ]


# --- populating


def test_every_table_gets_a_key_of_its_own(unpopulated: Database, settings: Settings) -> None:
    """32 random bytes each, all different, and a report of the progress."""
    seen: list[tuple[int, int]] = []
    keks = keks_of(unpopulated, settings)
    assert (
        populate(unpopulated, keks, lambda *progress: seen.append(progress), actor=ACTOR) == TABLES
    )
    keys = master_keys(unpopulated, settings)
    assert len(set(keys)) == TABLES
    assert {len(key) for key in keys} == {32}
    assert seen[-1] == (TABLES, TABLES)


def test_populating_again_changes_nothing(unpopulated: Database, settings: Settings) -> None:
    """Threat 12: what is there stays, byte for byte."""
    keks = keks_of(unpopulated, settings)
    populate(unpopulated, keks, quiet, actor=ACTOR)
    before = stored_tables(unpopulated)
    assert populate(unpopulated, keks, quiet, actor=ACTOR) == 0
    assert stored_tables(unpopulated) == before
    assert initialise(settings, quiet, actor=ACTOR) is None
    assert stored_tables(unpopulated) == before


def test_an_interrupted_run_is_resumed(
    unpopulated: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Threat 12: the tables that were made before the interruption keep their keys."""
    monkeypatch.setattr(key_table_cache, "_CHUNK", 2)

    def interrupt(present: int, _wanted: int) -> None:
        if present >= 4:
            raise KeyboardInterrupt

    keks = keks_of(unpopulated, settings)
    with pytest.raises(KeyboardInterrupt):
        populate(unpopulated, keks, interrupt, actor=ACTOR)
    before = stored_tables(unpopulated)
    assert [row[0] for row in before] == [0, 1, 2, 3]
    with pytest.raises(KeyTablesError, match=r"4 of 6 key tables.*Type: sma tables populate"):
        open_key_table_cache(unpopulated, keks)
    seen: list[tuple[int, int]] = []
    assert (
        populate(unpopulated, keks, lambda *progress: seen.append(progress), actor=ACTOR)
        == TABLES - 4
    )
    assert seen == [(TABLES, TABLES)]
    assert stored_tables(unpopulated)[:4] == before
    assert len(set(master_keys(unpopulated, settings))) == TABLES


def test_a_hole_is_filled(unpopulated: Database, settings: Settings) -> None:
    """As long as no device relies on the tables, a missing one can be made anew."""
    keks = keks_of(unpopulated, settings)
    populate(unpopulated, keks, quiet, actor=ACTOR)
    before = stored_tables(unpopulated)
    execute(unpopulated, "DELETE FROM key_tables WHERE table_id = 2")
    with pytest.raises(KeyTablesError):
        open_key_table_cache(unpopulated, keks)
    assert populate(unpopulated, keks, quiet, actor=ACTOR) == 1
    after = stored_tables(unpopulated)
    assert [row for row in after if row[0] != 2] == [row for row in before if row[0] != 2]


def test_populating_twice_at_once(
    unpopulated: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Threat 11: both see every table, and every table has one master key for good."""
    monkeypatch.setattr(key_table_cache, "_CHUNK", 1)
    keks = keks_of(unpopulated, settings)
    meeting = threading.Barrier(4)
    errors: list[Exception] = []
    seen: list[list[bytes]] = []

    ask = device_store.are_registered

    def ask_and_meet(connection: Connection) -> bool:
        found = ask(connection)
        meeting.wait(30)  # by now, each of them has found all tables missing
        return found

    monkeypatch.setattr(device_store, "are_registered", ask_and_meet)

    def run() -> None:
        try:
            populate(unpopulated, keks, quiet, actor=ACTOR)
            seen.append(master_keys(unpopulated, settings))
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert errors == []
    assert len(seen) == 4
    assert seen == [seen[0]] * 4
    assert len(set(seen[0])) == TABLES


def test_tables_are_never_made_for_devices_in_the_field(settings: Settings) -> None:
    """Threat 12: where devices hold keys, a missing table is damage, and new keys would hide it."""
    with new_authority(settings) as authority:
        new_camera(authority, "device")
        database = authority.database
        execute(database, "DELETE FROM key_tables WHERE table_id = 2")
        before = stored_tables(database)
        for attempt in (
            lambda: populate_tables(database, settings, quiet, actor=ACTOR),
            lambda: initialise(settings, quiet, actor=ACTOR),
        ):
            with pytest.raises(KeyTablesError, match=r"1 key table is missing.*backup"):
                attempt()
        assert stored_tables(database) == before
    with pytest.raises(KeyTablesError):
        open_authority(settings)


def test_without_an_authority_there_is_nothing_to_populate(
    database: Database, settings: Settings
) -> None:
    """The message says what comes first."""
    with pytest.raises(NotInitialisedError, match="Type: sma init"):
        populate(database, nobody(), quiet, actor=ACTOR)
    with pytest.raises(NotInitialisedError, match="Type: sma init"):
        open_key_table_cache(database, nobody())


# --- sizes


@pytest.mark.parametrize(
    "other",
    [
        {"tables": TABLES + 1, "keys_per_table": KEYS_PER_TABLE},
        {"tables": TABLES, "keys_per_table": KEYS_PER_TABLE + 1},
        {"tables": 2_500, "keys_per_table": 1_000},
    ],
)
def test_the_sizes_are_fixed(settings: Settings, other: dict[str, int]) -> None:
    """Threat 12: neither opening nor initialising again takes other sizes, and nothing changes."""
    with new_authority(settings) as authority:
        before = stored_tables(authority.database)
        changed = small_settings(settings.data_dir, settings.resolved_database_url, **other)
        for attempt in (open_authority, lambda given: initialise(given, quiet, actor=ACTOR)):
            with pytest.raises(ConfigurationError, match=f"{TABLES} tables of {KEYS_PER_TABLE}"):
                attempt(changed)
        assert stored_tables(authority.database) == before


def test_sizes_need_not_be_repeated(settings: Settings) -> None:
    """Without sizes among the settings, an authority has those that it began with."""
    initialise(settings, quiet, actor=ACTOR)
    silent = small_settings(
        settings.data_dir, settings.resolved_database_url, tables=None, keys_per_table=None
    )
    with opened(silent) as authority:
        assert authority.table_sizes == settings.table_sizes


@pytest.mark.parametrize("field", ["tables", "keys_per_table"])
def test_one_size_alone_may_be_repeated(settings: Settings, field: str) -> None:
    """A size that is right is no contradiction to the one that was left out."""
    initialise(settings, quiet, actor=ACTOR)
    left_out = {"tables": None, "keys_per_table": None, field: getattr(settings, field)}
    partly = small_settings(settings.data_dir, settings.resolved_database_url, **left_out)
    with opened(partly) as authority:
        assert authority.table_sizes == settings.table_sizes


# --- an open stock


def test_derived_keys_are_those_of_the_protocol(settings: Settings) -> None:
    """First and last index; and a second opening gives the same keys."""
    with new_authority(settings) as authority, opened(settings) as again:
        for table_id in range(TABLES):
            for key_index in (0, KEYS_PER_TABLE - 1):
                expected = key_derivation.derive_key(
                    authority.table_cache.keys.current[table_id].master_key, key_index
                )
                assert authority.table_cache.keys.current[table_id].derive(key_index) == expected
                assert again.table_cache.keys.current[table_id].derive(key_index) == expected


def test_all_devices_on_a_table_have_one_master_key(settings: Settings) -> None:
    """Threat 11: whoever shares a table shares its key, over every opening of the authority."""
    held: dict[int, set[bytes]] = {}
    initialise(settings, quiet, actor=ACTOR)
    for opening in range(3):
        with opened(settings) as authority:
            for number in range(4):
                camera = new_camera(authority, f"device-{opening}-{number}")
                for table_id, key in camera.table_keys.items():
                    held.setdefault(table_id, set()).add(key)
    assert {len(keys) for keys in held.values()} == {1}


def test_rows_cannot_change_places(settings: Settings) -> None:
    """Threat 13: a wrapped key in another table's row does not open."""
    initialise(settings, quiet, actor=ACTOR)
    with opened(settings) as authority:
        first = stored_tables(authority.database)[0][1]
        execute(
            authority.database,
            "UPDATE key_tables SET master_key = :key WHERE table_id = 1",
            key=first,
        )
    with pytest.raises(WrongSecretError):
        open_authority(settings)


def test_a_stock_shows_nothing(settings: Settings) -> None:
    """Threat 28: printing it tells no key."""
    with new_authority(settings) as authority:
        assert authority.table_cache.keys.current[0].master_key.hex() not in repr(
            authority.table_cache
        )
        assert repr(authority.table_cache.keys.current[0].master_key)[2:-1] not in repr(
            authority.table_cache
        )
        assert "bytes" not in repr(authority.table_cache)


# --- what a stolen database tells


@pytest.fixture
def used(settings: Settings, tmp_path: Path) -> Iterator[tuple[Database, list[bytes]]]:
    """The database of an authority that did all it can do, and every secret there was."""
    with new_authority(settings) as authority:
        cameras: list[Camera] = [
            new_camera(authority, f"device-{number}", idempotency_key=f"idempotency-{number}")
            for number in range(4)
        ]
        cameras.append(new_camera(authority, "own", nuc_hash=bytes(range(100, 132))))
        for camera in cameras:
            authority.validator.submit(camera.token(), Caller("192.0.2.1")).result(30)
        table_cache = authority.table_cache
        secrets = [table_cache.keys.current[table_id].master_key for table_id in range(TABLES)]
        secrets += [
            table_cache.keys.current[table_id].derive(index)
            for table_id in range(TABLES)
            for index in (0, 7)
        ]
        secrets += [camera.nuc_hash for camera in cameras]
        secrets += [f"idempotency-{number}".encode() for number in range(4)]
        secrets += [PASSPHRASE.encode()]
        assert settings.kek_file is not None
        secrets += [settings.kek_file.read_bytes()]
        number = authority.issuer.signer.key.private_numbers()
        secrets += [number.private_value.to_bytes(32, "big")]  # type: ignore[union-attr]
        yield authority.database, secrets


def spellings(secret: bytes) -> set[bytes]:
    """Return how a secret may be written down: raw, hex in either case, base64 of each kind."""
    return {
        secret,
        secret.hex().encode(),
        secret.hex().upper().encode(),
        # The first and last characters depend on what surrounds the secret in a longer text.
        base64.b64encode(secret)[:-4],
        base64.b64encode(b"\0" + secret)[4:-4],
        base64.b64encode(b"\0\0" + secret)[4:-4],
        base64.urlsafe_b64encode(secret)[:-4],
    }


def test_a_stolen_database_tells_no_secret(
    used: tuple[Database, list[bytes]], database_url: str
) -> None:
    """Threat 13: no master key, NUC hash, private key or passphrase, in whatever spelling.

    On SQLite in the files themselves, with the write-ahead log; on PostgreSQL in every column of
    every table, as text and as bytes.
    """
    database, secrets = used
    haystack = _files_of(database_url) if "sqlite" in database_url else _dump_of(database)
    assert b"device-0" in haystack
    assert b"PRIVATE KEY" not in haystack  # threat 5: not even in a form that is quick to guess at
    for secret in secrets:
        for spelling in spellings(secret):
            assert spelling not in haystack


def test_the_search_for_secrets_finds_what_is_there(
    used: tuple[Database, list[bytes]], database_url: str
) -> None:
    """What lies open in the database is found by the same search, in raw bytes and in text."""
    database, _ = used
    haystack = _files_of(database_url) if "sqlite" in database_url else _dump_of(database)
    stored = rows_of(database, "SELECT nuc_hash, provisioning_id FROM registered_devices")
    for nuc_hash_index, provisioning_id in stored:
        assert any(spelling in haystack for spelling in spellings(bytes(nuc_hash_index)))
        assert provisioning_id.encode() in haystack


def _files_of(database_url: str) -> bytes:
    path = Path(database_url.removeprefix("sqlite:///"))
    files = sorted(path.parent.glob(path.name + "*"))
    assert path.with_name(path.name + "-wal") in files
    return b"".join(file.read_bytes() for file in files)


def _dump_of(database: Database) -> bytes:
    tables = rows_of(
        database,
        "SELECT table_schema || '.' || table_name FROM information_schema.tables"
        " WHERE table_schema NOT IN ('pg_catalog', 'information_schema')",
    )
    assert len(tables) >= 8
    found: list[bytes] = []
    for (table,) in tables:
        for row in rows_of(database, f"SELECT * FROM {table}"):
            found += [value if isinstance(value, bytes) else str(value).encode() for value in row]
        found += [str(row).encode() for row in rows_of(database, f"SELECT t::text FROM {table} t")]
    return b"\n".join(found)
