"""A new key-encryption key: everything under it, nothing under the old, wherever it was cut off."""

import contextlib
import os
import secrets
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from birthmark_sma.authority.access.caller import Caller
from birthmark_sma.authority.audit_chain import keys as audit_keys
from birthmark_sma.authority.authority import Authority, open_authority
from birthmark_sma.authority.background.key_reload import KeyReloader
from birthmark_sma.authority.ca.ceremony import root_key_file
from birthmark_sma.authority.initialisation import initialise
from birthmark_sma.authority.kek import rotation, wrapping
from birthmark_sma.authority.kek.rotation import Rotated, count_outdated, rotate
from birthmark_sma.authority.kek.wrapping import open_stored_secrets
from birthmark_sma.authority.key_tables.cache import open_key_table_cache
from birthmark_sma.config import NewSecret, Settings
from birthmark_sma.errors import (
    BirthmarkError,
    ConfigurationError,
    KeyEncryptionKeyChangedError,
    PrivateFileError,
    RotationError,
    WrongSecretError,
)
from birthmark_sma.pki.keys.ca_keys import load_encrypted
from birthmark_sma.protocol.verdict import Verdict
from birthmark_sma.storage.engine import Database, open_database
from birthmark_sma.storage.locks import AdvisoryLock, only_one
from tests.support.authorities import (
    PASSPHRASE,
    execute,
    new_camera,
    opened,
    quiet,
    request_for,
    rows_of,
    small_settings,
)
from tests.support.cameras.table_epochs import rotate as rotate_tables
from tests.support.devices.actors import ACTOR
from tests.support.programs.running import wait_until
from tests.support.schemas import give_schema

OTHER = "another passphrase for tests alone"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait for no server that is not there."""
    monkeypatch.setattr(rotation, "FOLLOWING_SECONDS", 0.0)


@pytest.fixture
def founded_by_passphrase(tmp_path: Path, database_url: str) -> Settings:
    """A small authority whose secret is CA_PASSWORD."""
    settings = small_settings(tmp_path, database_url, kek_file=None)
    return created(settings.model_copy(update={"kek_file": None}))


@pytest.fixture
def laptop(tmp_path: Path) -> Settings:
    """A small authority on SQLite whose passphrase was made in the data directory."""
    settings = small_settings(tmp_path, None, ca_password=None, data_dir=tmp_path / "data")
    return created(settings.model_copy(update={"kek_file": None}))


def created(settings: Settings) -> Settings:
    """Create the authority of these settings, with a key for checkpoints as a server makes it."""
    give_schema(settings.resolved_database_url)
    initialise(settings, quiet, actor=ACTOR)
    with opened(settings) as authority, authority.database.write() as transaction:
        assert audit_keys.create_key(transaction, authority.secrets.keks, datetime.now(UTC))
    return settings


@contextlib.contextmanager
def database_of(settings: Settings) -> Iterator[Database]:
    """The database of these settings."""
    database = open_database(settings.resolved_database_url)
    try:
        yield database
    finally:
        database.close()


def rotated(settings: Settings, **new: Any) -> Rotated:
    """Rotate to a new secret."""
    with database_of(settings) as database:
        return rotate(database, settings, NewSecret(**new), quiet, actor=ACTOR)


def given(settings: Settings, **changes: Any) -> Settings:
    """The same settings with another secret."""
    fields = settings.model_dump(exclude_unset=True) | changes
    return Settings(**fields)


def contents(settings: Settings) -> tuple[list[bytes], bytes, bytes, bytes]:
    """Every master key, the CA key, what a NUC hash is looked up by, and the key of checkpoints."""
    authority = open_authority(settings)
    try:
        keys = [
            authority.table_cache.keys.current[n].master_key
            for n in range(authority.table_sizes.tables)
        ]
        with authority.database.read() as connection:
            audit_key = audit_keys.open_key(connection, authority.secrets.keks)
        assert audit_key is not None
        return (
            keys,
            authority.issuer.signer.private_der(),
            authority.secrets.nuc_hash_index.of(b""),
            audit_key.private_bytes_raw(),
        )
    finally:
        authority.close()


WHAT_STAYS = {"authority.json", "ca-password", "simulated-mfg-root-ca.key", "sma.db"}


def names_in(laptop: Settings) -> set[str]:
    """The names of all files in the data directory."""
    return {path.name for path in laptop.data_dir.iterdir()}


def assert_nothing_old(settings: Settings) -> None:
    """One key is in force, everything is under it, and no bridge leads to another."""
    with database_of(settings) as database:
        with database.read() as connection:
            assert count_outdated(connection).total == 0
        records = rows_of(
            database,
            "SELECT kek_id, wrapped_successor, wrapped_predecessor FROM key_encryption_keys",
        )
        assert len(records) == 1
        assert records[0][1:] == (None, None)
        newest = records[0][0]
        for table in ("key_tables", "idempotent_responses", "audit_keys"):
            assert rows_of(database, f"SELECT 1 FROM {table} WHERE kek_id <> {newest}") == []
        [ca] = rows_of(
            database,
            "SELECT kek_id, encrypted_private_key FROM ca_certificates WHERE name = 'intermediate'",
        )
        assert ca == (newest, None)


def command_for(key: bytes) -> str:
    """A command line that writes a key as hex."""
    return f"{sys.executable} -c \"print('{key.hex()}')\""


def test_to_another_passphrase(founded_by_passphrase: Settings) -> None:
    """Threat 13: the old one opens nothing any more, the new one all that was there."""
    settings = founded_by_passphrase
    with opened(settings) as authority:
        camera = new_camera(authority, "camera")
        asked = request_for("kept", idempotency_key="once")
        first = authority.provisioner.provision_device(asked)
    before = contents(settings)
    done = rotated(settings, new_ca_password=OTHER)
    assert (done.left.total, done.rewrapped.key_tables, done.rewrapped.first_answers) == (0, 6, 1)
    assert_nothing_old(settings)
    with pytest.raises(WrongSecretError):
        open_authority(settings)
    new = given(settings, ca_password=OTHER)
    assert contents(new) == before
    with opened(new) as authority:
        caller = Caller(None)
        assert authority.validator.submit(camera.token(), caller).result(30).verdict is Verdict.PASS
        assert authority.provisioner.provision_device(asked) == first
    assert load_encrypted(root_key_file(settings).read_text(), OTHER.encode())


def test_from_passphrase_to_file_to_command_and_back(
    founded_by_passphrase: Settings, tmp_path: Path
) -> None:
    """Each opens all, and none but the last."""
    settings, before = founded_by_passphrase, contents(founded_by_passphrase)
    file = tmp_path / "new.key"
    file.touch(0o600)
    file.write_bytes(secrets.token_bytes(32))
    command = command_for(secrets.token_bytes(32))
    rotated(settings, new_kek_file=file)
    by_file = given(settings, kek_file=file)
    rotated(by_file, new_kek_command=command)
    by_command = given(settings, kek_command=command)
    rotated(by_command, new_ca_password=OTHER)
    back = given(settings, ca_password=OTHER)
    assert contents(back) == before
    assert_nothing_old(back)
    for old in (settings, by_file, by_command):
        with pytest.raises(BirthmarkError):
            open_authority(old)


def test_a_laptop_gets_a_new_passphrase(laptop: Settings) -> None:
    """Threat 29: put in place whole, for its owner alone, and nothing else is left."""
    before, file = contents(laptop), laptop.data_dir / "ca-password"
    old = file.read_bytes()
    rotated(laptop)
    assert file.read_bytes() != old
    assert file.stat().st_mode & 0o077 == 0
    assert contents(laptop) == before
    previous = laptop.data_dir / "ca-password.previous"
    assert previous.read_bytes() == old
    assert previous.stat().st_mode & 0o077 == 0
    assert names_in(laptop) == {*WHAT_STAYS, "ca-password.previous"}
    rotated(laptop)
    assert len(previous.read_bytes().splitlines()) == 2, "every earlier one is kept"
    assert old in previous.read_bytes()
    assert load_encrypted(root_key_file(laptop).read_text(), file.read_bytes().strip())
    with pytest.raises(WrongSecretError):
        open_authority(given(laptop, ca_password=old.strip().decode()))


def test_an_older_authority_is_brought_to_the_new_form(founded_by_passphrase: Settings) -> None:
    """Threat 5: PKCS#8 still opens, and after a rotation not a byte of it is left."""
    settings = founded_by_passphrase
    before = contents(settings)
    with opened(settings) as authority:
        pem = authority.issuer.signer.encrypted_pem(PASSPHRASE.encode())
    with database_of(settings) as database:
        execute(
            database,
            "UPDATE ca_certificates SET encrypted_private_key = :pem, sealed_private_key = NULL,"
            " kek_id = NULL WHERE name = 'intermediate'",
            pem=pem,
        )
        wrapped = [bytes(row[0]) for row in rows_of(database, "SELECT master_key FROM key_tables")]
        proof = rows_of(database, "SELECT wrapped_nuc_hash_key FROM key_encryption_keys")
    wrapped.append(bytes(proof[0][0]))
    assert contents(settings) == before
    rotated(settings, new_ca_password=OTHER)
    assert_nothing_old(settings)
    assert contents(given(settings, ca_password=OTHER)) == before
    if settings.uses_sqlite:
        file = Path(settings.resolved_database_url.removeprefix("sqlite:///"))
        bytes_left = b"".join(each.read_bytes() for each in file.parent.glob(f"{file.name}*"))
        assert pem.splitlines()[3].encode() not in bytes_left
        assert not [old for old in wrapped if old in bytes_left]


# --- cut off


class Killed(BaseException):
    """The process ends here."""


class _Killer:
    """Ends the process before or after the n-th step that leaves a trace."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
        self._left = at
        write = Database.write

        @contextlib.contextmanager
        def counted_write(database: Database, *times: Any, **options: Any) -> Iterator[Any]:
            self.count()
            with write(database, *times, **options) as transaction:
                yield transaction
            self.count()

        monkeypatch.setattr(Database, "write", counted_write)
        for owner, name in ((Path, "replace"), (Path, "unlink"), (os, "link")):
            monkeypatch.setattr(owner, name, self._counted(getattr(owner, name)))

    def count(self) -> None:
        """Take note of a step."""
        self._left -= 1
        if self._left == 0:
            raise Killed

    def _counted(self, step: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **options: Any) -> Any:
            if ".partial" not in str(arguments[0]):
                self.count()
            done = step(*arguments, **options)
            if ".partial" not in str(arguments[0]):
                self.count()
            return done

        return counted


def until_it_ends(
    monkeypatch: pytest.MonkeyPatch, run: Callable[[], object], look: Callable[[], None]
) -> int:
    """Run, killed at the first step, then at the second, and so on, until a run comes to its end.

    After every kill `look`; return how often it was killed.
    """
    for at in range(1, 200):
        with monkeypatch.context() as killing:
            _Killer(killing, at)
            try:
                run()
            except Killed:
                killed = True
            else:
                killed = False
        look()
        if not killed:
            return at - 1
    raise AssertionError("it never came to its end")


def test_killed_at_every_step_on_a_laptop(
    laptop: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Threat 30: after each kill the authority opens, with all that was in it."""
    before = contents(laptop)
    first = (laptop.data_dir / "ca-password").read_bytes().strip()

    def look() -> None:
        assert contents(laptop) == before

    assert until_it_ends(monkeypatch, lambda: rotated(laptop), look) >= 10
    assert_nothing_old(laptop)
    passphrase = (laptop.data_dir / "ca-password").read_bytes().strip()
    assert load_encrypted(root_key_file(laptop).read_text(), passphrase)
    assert names_in(laptop) - {"ca-password.previous"} == WHAT_STAYS
    if passphrase != first:
        assert first in (laptop.data_dir / "ca-password.previous").read_bytes().split()


def test_a_rotation_signs_the_root_s_list(laptop: Settings) -> None:
    """As always where the root's key is at hand; with its file elsewhere, the list stays."""
    newest = "SELECT max(number) FROM published_crls WHERE issuer = 'root'"

    def number() -> int:
        with database_of(laptop) as database:
            found: int = rows_of(database, newest)[0][0]
            return found

    numbers = [number()]
    rotated(laptop)
    numbers.append(number())
    assert numbers == sorted(set(numbers))
    root_key_file(laptop).unlink()
    rotated(laptop)
    assert number() == numbers[-1]


@pytest.mark.parametrize("at", range(1, 40))
def test_killed_once_and_run_again(
    laptop: Settings, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    """Whatever the step, one more run brings it to its end, and nothing is left lying about."""
    before = contents(laptop)
    first = (laptop.data_dir / "ca-password").read_bytes().strip()
    with monkeypatch.context() as killing, contextlib.suppress(Killed):
        _Killer(killing, at)
        rotated(laptop)
    assert contents(laptop) == before
    rotated(laptop)
    assert_nothing_old(laptop)
    assert contents(laptop) == before
    passphrase = (laptop.data_dir / "ca-password").read_bytes().strip()
    assert load_encrypted(root_key_file(laptop).read_text(), passphrase)
    assert names_in(laptop) - {"ca-password.previous"} == WHAT_STAYS
    if passphrase != first:
        assert first in (laptop.data_dir / "ca-password.previous").read_bytes().split()


@pytest.mark.parametrize("at", range(1, 40))
@pytest.mark.parametrize("to", ["file", "passphrase"])
def test_killed_once_and_then_led_elsewhere(
    laptop: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int, to: str
) -> None:
    """Threat 30: whatever the step, another new secret locks nobody out, nor the root's key."""
    before = contents(laptop)
    first = (laptop.data_dir / "ca-password").read_bytes().strip()
    with monkeypatch.context() as killing, contextlib.suppress(Killed):
        _Killer(killing, at)
        rotated(laptop)
    if to == "file":
        file = tmp_path / "new.key"
        file.touch(0o600)
        file.write_bytes(secrets.token_bytes(32))
        rotated(laptop, new_kek_file=file)
        new = given(laptop, kek_file=file)
    else:
        rotated(laptop, new_ca_password=OTHER)
        new = laptop
    assert_nothing_old(new)
    assert contents(new) == before
    passphrase = (laptop.data_dir / "ca-password").read_bytes().strip()
    assert load_encrypted(root_key_file(laptop).read_text(), passphrase)
    assert names_in(laptop) - {"ca-password.previous"} == WHAT_STAYS
    if passphrase != first:
        assert first in (laptop.data_dir / "ca-password.previous").read_bytes().split()


def test_killed_at_every_step_with_given_passphrases(
    founded_by_passphrase: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old one opens it until the end, the new one from the beginning; so the root's key."""
    settings = founded_by_passphrase
    new = given(settings, ca_password=OTHER)
    before = contents(settings)

    def look() -> None:
        seen = []
        for one in (settings, new):
            with contextlib.suppress(WrongSecretError):
                seen.append(contents(one))
        assert seen in ([before], [before, before])
        pem = root_key_file(settings).read_text()
        with contextlib.suppress(WrongSecretError):
            assert load_encrypted(pem, PASSPHRASE.encode())
            return
        assert load_encrypted(pem, OTHER.encode())

    run: Callable[[], object] = lambda: rotated(settings, new_ca_password=OTHER)  # noqa: E731
    assert until_it_ends(monkeypatch, run, look) >= 8
    assert_nothing_old(new)
    with pytest.raises(WrongSecretError):
        open_authority(settings)
    assert load_encrypted(root_key_file(settings).read_text(), OTHER.encode())


def test_a_new_secret_that_was_lost_half_way(
    founded_by_passphrase: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old one leads to a third: nobody is locked out by a rotation that was cut off."""
    settings = founded_by_passphrase
    before = contents(settings)
    with monkeypatch.context() as killing:
        _Killer(killing, 8)
        with pytest.raises(Killed):
            rotated(settings, new_ca_password="lost for ever, and never found")
    done = rotated(settings, new_ca_password=OTHER)
    assert done.left.total == 0
    assert_nothing_old(settings)
    assert contents(given(settings, ca_password=OTHER)) == before
    assert load_encrypted(root_key_file(settings).read_text(), OTHER.encode())


# --- refused, with nothing touched


def state(settings: Settings) -> tuple[list[tuple[Any, ...]], dict[str, bytes]]:
    """The keys' records and tables, and every file but the database."""
    with database_of(settings) as database:
        rows = rows_of(database, "SELECT kek_id, salt FROM key_encryption_keys")
        rows += rows_of(database, "SELECT table_id, master_key FROM key_tables ORDER BY table_id")
    files = {p.name: p.read_bytes() for p in settings.data_dir.iterdir() if "sma.db" not in p.name}
    return rows, files


def test_a_wrong_passphrase_touches_nothing(founded_by_passphrase: Settings) -> None:
    """One clear sentence."""
    before = state(founded_by_passphrase)
    wrong = given(founded_by_passphrase, ca_password="wr0ng")
    with pytest.raises(WrongSecretError) as refused:
        rotated(wrong, new_ca_password=OTHER)
    assert "wr0ng" not in str(refused.value)
    assert state(founded_by_passphrase) == before


@pytest.mark.parametrize(
    ("new", "words"),
    [
        ({}, "No new secret was given"),
        ({"new_ca_password": PASSPHRASE}, "already in force"),
        ({"new_kek_file": "absent", "new_kek_command": "true"}, "Leave one of them out"),
        ({"new_kek_command": "false"}, "exit code 1"),
        ({"new_kek_command": "openssl rand -hex 32"}, "another key the second time"),
    ],
)
def test_a_new_secret_that_cannot_be(
    founded_by_passphrase: Settings, new: dict[str, Any], words: str
) -> None:
    before = state(founded_by_passphrase)
    with pytest.raises(ConfigurationError, match=words):
        rotated(founded_by_passphrase, **new)
    assert state(founded_by_passphrase) == before


def test_the_same_key_from_another_source_changes_nothing(
    founded_by_passphrase: Settings, tmp_path: Path
) -> None:
    """Neither a file nor the root's list, as the message says."""
    key = secrets.token_bytes(32)
    command = command_for(key)
    rotated(founded_by_passphrase, new_kek_command=command)
    settings = given(founded_by_passphrase, kek_command=command)
    file = tmp_path / "same.key"
    file.touch(0o600)
    file.write_bytes(key)

    def changeable() -> tuple[Any, ...]:
        with database_of(settings) as database:
            published = rows_of(database, "SELECT issuer, number FROM published_crls ORDER BY 1, 2")
        return state(settings), published

    before = changeable()
    with pytest.raises(ConfigurationError, match=r"already in force\. Nothing was changed"):
        rotated(settings, new_kek_file=file, new_ca_password=OTHER)
    assert changeable() == before


def test_two_at_once(founded_by_passphrase: Settings) -> None:
    """The second is told so."""
    before = state(founded_by_passphrase)
    with (
        database_of(founded_by_passphrase) as database,
        only_one(database, AdvisoryLock.KEY_ROTATION) as alone,
    ):
        assert alone
        with pytest.raises(RotationError, match="Another rotation of this authority"):
            rotated(founded_by_passphrase, new_ca_password=OTHER)
    assert state(founded_by_passphrase) == before
    assert rotated(founded_by_passphrase, new_ca_password=OTHER).left.total == 0


def test_a_full_disk(laptop: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Threat 29: a passphrase that could not be kept is not used."""
    before = state(laptop)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as filled:
        filled.setattr("birthmark_sma.runtime.secret_files._write_durably", full)
        with pytest.raises(PrivateFileError, match="No space left"):
            rotated(laptop)
    assert state(laptop) == before


def test_a_new_passphrase_is_removed_if_the_root_key_cannot_be_prepared(laptop: Settings) -> None:
    """It is in force nowhere, so its file would only look like an interrupted rotation."""
    path = root_key_file(laptop)
    signer = load_encrypted(path.read_text(), (laptop.data_dir / "ca-password").read_bytes()[:-1])
    path.write_text(signer.encrypted_pem(b"a third one"))
    before = state(laptop)
    with pytest.raises(ConfigurationError, match="safe place"):
        rotated(laptop)
    assert state(laptop) == before


def test_a_root_key_of_another_passphrase(founded_by_passphrase: Settings) -> None:
    """It is not left behind unnoticed."""
    path = root_key_file(founded_by_passphrase)
    signer = load_encrypted(path.read_text(), PASSPHRASE.encode())
    path.write_text(signer.encrypted_pem(b"a third one"))
    before = state(founded_by_passphrase)
    with pytest.raises(ConfigurationError, match="safe place"):
        rotated(founded_by_passphrase, new_ca_password=OTHER)
    assert state(founded_by_passphrase) == before
    path.rename(path.with_name("elsewhere"))
    assert rotated(founded_by_passphrase, new_ca_password=OTHER).root_key == "not here"


# --- servers that run meanwhile


def keep_one(authority: Authority, serial: str) -> None:
    """Provision a device whose first answer is kept."""
    authority.provisioner.provision_device(request_for(serial, idempotency_key=serial))


def test_a_server_follows_without_the_new_secret(
    founded_by_passphrase: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it seals is under the new key from its first moment, whether it polled or not."""
    settings = founded_by_passphrase
    with opened(settings) as running, opened(settings) as idle:
        keep_one(running, "before")

        def meanwhile(_: float) -> None:
            keep_one(running, "during")
            with idle.database.read() as connection:
                idle.secrets.keks.poll(connection)

        with database_of(settings) as database:
            new = NewSecret.model_validate({"new_ca_password": OTHER})
            assert (
                rotate(database, settings, new, quiet, wait=meanwhile, actor=ACTOR).left.total == 0
            )
        for number, server in enumerate((running, idle)):
            keep_one(server, f"after {number}")
        assert rows_of(running.database, "SELECT DISTINCT kek_id FROM idempotent_responses") == [
            (2,)
        ]
        # First answers that others sealed, or that were sealed anew, are found as well.
        asked = request_for("again", idempotency_key="again")
        first = idle.provisioner.provision_device(asked)
        assert running.provisioner.provision_device(asked) == first
    assert_nothing_old(settings)


def test_a_server_that_slept_through_it(founded_by_passphrase: Settings) -> None:
    """It validates and provisions; only first answers must wait, with a 503, for its restart."""
    settings = founded_by_passphrase
    with opened(settings) as late:
        rotated(settings, new_ca_password=OTHER)
        camera = new_camera(late, "camera")
        token = camera.token()
        assert late.validator.submit(token, Caller(None)).result(30).verdict is Verdict.PASS
        with pytest.raises(KeyEncryptionKeyChangedError):
            keep_one(late, "late")
        with late.database.read() as connection:
            late.secrets.keks.poll(connection)
        assert (
            rows_of(late.database, "SELECT 1 FROM registered_devices WHERE device_serial='late'")
            == []
        )


def test_a_server_that_slept_gives_no_verdict_under_unknown_keys(
    founded_by_passphrase: Settings,
) -> None:
    """Threat 19: tables that were rotated afterwards are not FAIL, and access keys are watched."""
    settings = founded_by_passphrase
    with opened(settings) as late:
        camera = new_camera(late, "camera")
        rotated(settings, new_ca_password=OTHER)
        with opened(given(settings, ca_password=OTHER)) as awake:
            rotate_tables(awake)
            judged = awake.validator.submit(camera.token(), Caller(None)).result(30)
            assert judged.verdict is Verdict.PASS
        with pytest.raises(KeyEncryptionKeyChangedError):
            late.validator.submit(camera.token(), Caller(None)).result(30)
        with pytest.raises(KeyEncryptionKeyChangedError):
            new_camera(late, "late")
        watch = KeyReloader(
            late.database, late.secrets.keks, late.key_cache, late.issuers, late.table_cache
        )
        watch.work(datetime.now(UTC))


def test_a_late_server_on_a_laptop_reads_the_passphrase_again(laptop: Settings) -> None:
    with opened(laptop) as late:
        rotated(laptop)
        with late.database.read() as connection:
            late.secrets.keks.poll(connection)
        wait_until(lambda: late.secrets.keks.newest.kek_id == 2, 10)
        keep_one(late, "late")
    assert_nothing_old(laptop)


def test_a_command_that_hangs_delays_no_revocation(
    founded_by_passphrase: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Access keys are looked at by the same thread, and must count within a second."""
    asked, answer = threading.Event(), threading.Event()

    def hanging(*_: Any) -> Any:
        asked.set()
        answer.wait(30)
        raise WrongSecretError

    with opened(founded_by_passphrase) as late:
        rotated(founded_by_passphrase, new_ca_password=OTHER)
        monkeypatch.setattr(wrapping, "open_keys", hanging)
        watch = KeyReloader(
            late.database, late.secrets.keks, late.key_cache, late.issuers, late.table_cache
        )
        began = time.monotonic()
        watch.work(datetime.now(UTC))
        assert time.monotonic() - began < 5
        assert asked.wait(10)
        answer.set()


def test_a_server_may_be_started_in_the_middle(founded_by_passphrase: Settings) -> None:
    """With either secret: half of the tables are under the one key, half under the other."""
    settings = founded_by_passphrase
    before = contents(settings)
    seen: list[object] = []

    def meanwhile(_: float) -> None:
        seen.extend(contents(s) for s in (settings, given(settings, ca_password=OTHER)))

    with database_of(settings) as database:
        new = NewSecret.model_validate({"new_ca_password": OTHER})
        rotate(database, settings, new, quiet, wait=meanwhile, actor=ACTOR)
    assert seen == [before, before]


def test_what_is_opened_while_tables_are_wrapped_anew(
    founded_by_passphrase: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that has proven the old secret and then finds tables under the new key."""
    settings = founded_by_passphrase
    with database_of(settings) as database:
        keks = open_stored_secrets(database, settings).keks
        seen: list[int] = []

        def meanwhile(_: float) -> None:
            seen.append(len(open_key_table_cache(database, keks).keys.current))

        new = NewSecret.model_validate({"new_ca_password": OTHER})
        rotate(database, settings, new, quiet, wait=meanwhile, actor=ACTOR)
    assert seen == [6]


def test_a_late_server_does_not_derive_keys_all_the_time(
    founded_by_passphrase: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A passphrase that opens nothing any more is tried again twice a minute, no more often."""
    tried: list[object] = []
    opening = wrapping.open_keys

    def noted(*arguments: Any) -> Any:
        tried.append(arguments)
        return opening(*arguments)

    with opened(founded_by_passphrase) as late:
        rotated(founded_by_passphrase, new_ca_password=OTHER)
        monkeypatch.setattr(wrapping, "open_keys", noted)
        for _ in range(20):
            with late.database.read() as connection:
                late.secrets.keks.poll(connection)
        wait_until(lambda: bool(tried), 10)
    assert len(tried) == 1
