"""The ceremony: one root for a database, its key encrypted and apart, whatever interrupts it."""

import stat
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from sqlalchemy import Connection

from birthmark_sma.authority import initialisation
from birthmark_sma.authority.authority import open_authority
from birthmark_sma.authority.ca import ceremony
from birthmark_sma.authority.ca import store as ca_store
from birthmark_sma.authority.ca.ceremony import Ceremony, hold_ceremony
from birthmark_sma.authority.initialisation import initialise
from birthmark_sma.authority.key_tables import store as key_table_store
from birthmark_sma.config import Settings
from birthmark_sma.errors import AlreadyInitialisedError, PrivateFileError
from birthmark_sma.pki.keys.ca_keys import CaKeyType
from birthmark_sma.runtime.secret_files import write_private_file
from birthmark_sma.storage.engine import Database, open_database
from birthmark_sma.storage.migration import migrate
from tests.support.authorities import PASSPHRASE, opened, openssl, quiet, rows_of, small_settings
from tests.support.devices.actors import ACTOR


class PowerCutError(BaseException):
    """Nobody catches this."""


def everything_in(settings: Settings) -> dict[str, Any]:
    """Return all that an authority consists of: rows and files."""
    database = open_database(settings.resolved_database_url)
    tables = ("authority", "ca_certificates", "key_encryption_keys", "key_tables")
    found: dict[str, Any] = {
        table: sorted(map(repr, rows_of(database, f"SELECT * FROM {table}"))) for table in tables
    }
    database.close()
    found |= {
        path.name: path.read_bytes()
        for path in settings.data_dir.iterdir()
        # authority.json says when the authority was used last.
        if not path.name.startswith("sma.db") and path.name != "authority.json"
    }
    return found


def assert_consistent(settings: Settings) -> None:
    """The authority opens, and the root key's file holds the key of its root."""
    with opened(settings) as authority:
        root = authority.root
        assert authority.issuer.certificate.issuer == root.subject
        root.public_key()
        authority.issuer.certificate.verify_directly_issued_by(root)
    key = serialization.load_pem_private_key(
        ceremony.root_key_file(settings).read_bytes(), PASSPHRASE.encode()
    )
    assert key.public_key() == root.public_key(), "the root key's file holds another root's key"


# --- what it makes


def test_what_a_ceremony_makes(settings: Settings) -> None:
    """Threats 1 and 5: OpenSSL accepts the chain and opens the root's key, with the passphrase."""
    held = initialise(settings, quiet, actor=ACTOR)
    assert held is not None
    key_file = ceremony.root_key_file(settings)
    assert key_file.parent == settings.data_dir
    assert held.root_key_file == key_file
    assert stat.S_IMODE(key_file.stat().st_mode) == 0o600
    assert key_file.read_text().startswith("-----BEGIN ENCRYPTED PRIVATE KEY-----")

    opened_key = openssl("pkey", "-in", key_file, "-passin", f"pass:{PASSPHRASE}", "-pubout")
    assert opened_key.returncode == 0
    public_key = serialization.load_pem_public_key(opened_key.stdout.encode())
    assert public_key == held.root.public_key()
    for wrong in ("pass:", "pass:another"):
        refused = openssl("pkey", "-in", key_file, "-passin", wrong, "-noout")
        assert refused.returncode != 0

    assert_consistent(settings)
    assert_openssl_accepts(held.root, held.intermediate, settings.data_dir)


def assert_openssl_accepts(root: x509.Certificate, below: x509.Certificate, folder: Path) -> None:
    """OpenSSL finds a path from one certificate to the root, strictly."""
    files = {"root.pem": root, "below.pem": below}
    for name, certificate in files.items():
        (folder / name).write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    verified = openssl(
        "verify", "-x509_strict", "-CAfile", folder / "root.pem", folder / "below.pem"
    )
    assert verified.returncode == 0, verified.stderr


@pytest.mark.parametrize("key_type", CaKeyType)
def test_every_kind_of_ca_key(tmp_path: Path, key_type: CaKeyType) -> None:
    """The kind that was configured is that of both keys."""
    settings = small_settings(tmp_path, None, ca_key_type=key_type)
    held = initialise(settings, quiet, actor=ACTOR)
    assert held is not None
    sizes = {CaKeyType.RSA_4096: 4096, CaKeyType.EC_P384: 384, CaKeyType.EC_P256: 256}
    for certificate in (held.root, held.intermediate):
        public_key: Any = certificate.public_key()
        assert public_key.key_size == sizes[key_type]


def test_serial_numbers_are_random_and_of_one_length() -> None:
    """They are positive and of 159 bits, so that their DER has one length too."""
    numbers = {ceremony.random_serial_number() for _ in range(200)}
    assert len(numbers) == 200
    assert {number.bit_length() for number in numbers} == {159}


def test_the_server_never_needs_the_root_key(settings: Settings) -> None:
    """Threat 5: without the root's file everything works but making another intermediate."""
    held = initialise(settings, quiet, actor=ACTOR)
    assert held is not None
    held.root_key_file.unlink()
    with opened(settings) as authority:
        assert authority.root == held.root
    rows = repr(everything_in(settings)["ca_certificates"])
    assert "PRIVATE KEY" not in rows  # the intermediate's is sealed


def test_the_root_key_goes_where_it_is_told(tmp_path: Path, database_url: str) -> None:
    """A folder that is not there yet is made, for its owner alone."""
    path = tmp_path / "safe" / "root.key"
    settings = small_settings(tmp_path, database_url, root_key_file=path)
    held = initialise(settings, quiet, actor=ACTOR)
    assert held is not None
    assert held.root_key_file == path
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert list(path.parent.iterdir()) == [path]
    assert_consistent(settings)


def test_nothing_shows_the_keys(settings: Settings) -> None:
    """Threat 28: what a ceremony returns can be printed."""
    held = initialise(settings, quiet, actor=ACTOR)
    assert "PRIVATE" not in repr(held)
    authority = open_authority(settings)
    assert "PRIVATE" not in repr(authority)
    assert "PRIVATE" not in repr(authority.issuer)
    authority.close()


# --- never twice


def test_a_second_ceremony_is_refused(settings: Settings) -> None:
    """Threat 12: nothing that exists is touched."""
    initialise(settings, quiet, actor=ACTOR)
    before = everything_in(settings)
    database = open_database(settings.resolved_database_url)
    with pytest.raises(AlreadyInitialisedError, match="sma ca show"):
        hold_ceremony(database, settings, actor=ACTOR)
    database.close()
    assert everything_in(settings) == before
    assert initialise(settings, quiet, actor=ACTOR) is None
    assert everything_in(settings) == before


def test_a_second_ceremony_without_the_root_key_is_refused(settings: Settings) -> None:
    """Moving the root's key to a safe place does not make room for another root."""
    held = initialise(settings, quiet, actor=ACTOR)
    assert held is not None
    held.root_key_file.unlink()
    before = everything_in(settings)
    assert initialise(settings, quiet, actor=ACTOR) is None
    database = open_database(settings.resolved_database_url)
    with pytest.raises(AlreadyInitialisedError):
        hold_ceremony(database, settings, actor=ACTOR)
    database.close()
    assert everything_in(settings) == before


def test_the_root_key_of_another_authority_is_kept(settings: Settings) -> None:
    """Where the database is new and the key's file is not, the file wins."""
    path = ceremony.root_key_file(settings)
    path.write_text("the key of another authority")
    with pytest.raises(PrivateFileError, match=r"another authority.*--root-key-file"):
        initialise(settings, quiet, actor=ACTOR)
    assert path.read_text() == "the key of another authority"
    database = open_database(settings.resolved_database_url)
    with database.read() as connection:
        assert key_table_store.find_sizes(connection) is None
    database.close()


# --- interrupted


def power_cut(*_: Any, **__: Any) -> None:
    """End here."""
    raise PowerCutError


def after(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that does its work and then ends everything."""

    def work_and_end(*arguments: Any, **named: Any) -> None:
        function(*arguments, **named)
        raise PowerCutError

    return work_and_end


@pytest.mark.parametrize(
    ("module", "name", "when"),
    [
        (initialisation, "migrate", "before"),
        (initialisation, "migrate", "after"),
        (ceremony, "find_or_make_passphrase", "after"),
        (ceremony, "write_private_file", "before"),
        (ceremony, "write_private_file", "after"),
        (key_table_store, "add_authority", "after"),
        (ca_store, "add_ca", "after"),
        (ceremony, "hold_ceremony", "after"),
        (initialisation, "populate_tables", "before"),
        (initialisation, "populate_tables", "after"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_power_cut_at_any_step(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, module: Any, name: str, when: str
) -> None:
    """Threat 29: run again, `sma init` finishes the work, and the keys belong together."""
    original = getattr(module, name)
    with monkeypatch.context() as cut:
        cut.setattr(module, name, power_cut if when == "before" else after(original))
        with pytest.raises(PowerCutError):
            initialise(settings, quiet, actor=ACTOR)
    initialise(settings, quiet, actor=ACTOR)
    assert_consistent(settings)
    left = {path.name for path in settings.data_dir.iterdir() if "root-ca" in path.name}
    assert left == {ceremony.root_key_file(settings).name}


def test_a_power_cut_between_the_commit_and_the_name(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Threat 29: the key is on disk before the commit, and gets its name from the next run."""
    finish = ceremony.finish_ceremony
    calls: list[Settings] = []

    def cut_once_committed(database: Database, given: Settings) -> None:
        calls.append(given)
        if _is_founded(settings):
            raise PowerCutError
        finish(database, given)

    with monkeypatch.context() as cut:
        cut.setattr(ceremony, "finish_ceremony", cut_once_committed)
        with pytest.raises(PowerCutError):
            initialise(settings, quiet, actor=ACTOR)
    assert calls
    assert not ceremony.root_key_file(settings).exists()
    assert initialise(settings, quiet, actor=ACTOR) is None
    assert_consistent(settings)


def _is_founded(settings: Settings) -> bool:
    database = open_database(settings.resolved_database_url)
    with database.read() as connection:
        sizes = key_table_store.find_sizes(connection)
    database.close()
    return sizes is not None


# --- at once


def initialise_at_once(*all_settings: Settings) -> list[Any]:
    """Initialise with each of these settings at the same time; return the outcomes, in order."""
    outcomes: dict[int, Any] = {}
    start = threading.Barrier(len(all_settings))

    def run(number: int, settings: Settings) -> None:
        start.wait(30)
        try:
            outcomes[number] = initialise(settings, quiet, actor=ACTOR)
        except Exception as error:
            outcomes[number] = error

    threads = [
        threading.Thread(target=run, args=[number, settings])
        for number, settings in enumerate(all_settings)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return [outcomes[number] for number in range(len(all_settings))]


def test_a_ceremony_that_another_one_overtakes(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is told that there is an authority now, not that a stranger's key lies about."""
    find_sizes = key_table_store.find_sizes
    others: list[object] = []

    def find_and_be_overtaken(connection: Connection) -> object:
        found = find_sizes(connection)
        monkeypatch.setattr(key_table_store, "find_sizes", find_sizes)
        others.append(initialise(settings, quiet, actor=ACTOR))
        return found

    database = open_database(settings.resolved_database_url)
    migrate(database)
    monkeypatch.setattr(key_table_store, "find_sizes", find_and_be_overtaken)
    with pytest.raises(AlreadyInitialisedError):
        hold_ceremony(database, settings, actor=ACTOR)
    database.close()
    assert isinstance(others[0], Ceremony)
    assert_consistent(settings)


def test_two_initialisations_at_once_found_one_authority(settings: Settings) -> None:
    """One holds the ceremony; the other finds it held, or is told so."""
    outcomes = initialise_at_once(settings, settings)
    held = [outcome for outcome in outcomes if isinstance(outcome, Ceremony)]
    assert len(held) == 1, outcomes
    assert all(
        outcome is None or isinstance(outcome, Ceremony | AlreadyInitialisedError)
        for outcome in outcomes
    ), outcomes
    assert_consistent(settings)
    with opened(settings) as authority:
        assert authority.root == held[0].root


def meet_before_the_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let two ceremonies both have their root's key on disk before either commits."""
    meeting = threading.Barrier(2)

    def write_and_wait(*arguments: Any, **named: Any) -> None:
        write_private_file(*arguments, **named)
        try:
            arrived_last = meeting.wait(0.5) == 1
        except threading.BrokenBarrierError:
            return
        if arrived_last:  # whoever wrote last commits last, and so loses
            time.sleep(0.3)

    monkeypatch.setattr(ceremony, "write_private_file", write_and_wait)


def test_two_ceremonies_in_one_folder_keep_the_right_root_key(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The key in the file is that of the root in the database, not that of the one who lost."""
    meet_before_the_commit(monkeypatch)
    outcomes = initialise_at_once(settings, settings)
    assert sum(isinstance(outcome, Ceremony) for outcome in outcomes) == 1, outcomes
    assert_consistent(settings)


def test_two_machines_that_found_one_database(
    tmp_path: Path, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The machine that lost keeps no key, not even after it initialises again."""
    meet_before_the_commit(monkeypatch)
    kek_file = small_settings(tmp_path, postgres_url).kek_file
    both = []
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        both.append(small_settings(tmp_path / name, postgres_url, kek_file=kek_file))
    outcomes = initialise_at_once(*both)
    assert sum(isinstance(outcome, Ceremony) for outcome in outcomes) == 1, outcomes
    for outcome, settings in zip(outcomes, both, strict=True):
        initialise(settings, quiet, actor=ACTOR)
        if isinstance(outcome, Ceremony):
            assert_consistent(settings)
        else:
            assert not ceremony.root_key_file(settings).exists()


def test_generated_passphrases_do_not_collide(tmp_path: Path) -> None:
    """Two first starts on one laptop agree on a passphrase, and one of them founds."""
    settings = small_settings(tmp_path, None, ca_password=None, data_dir=tmp_path / "data")
    outcomes = initialise_at_once(settings, settings, settings)
    assert sum(isinstance(outcome, Ceremony) for outcome in outcomes) == 1, outcomes
    with opened(settings) as authority:
        assert authority.table_sizes == settings.table_sizes


def test_the_database_is_asked_first(database: Database, tmp_path: Path, database_url: str) -> None:
    """A ceremony in a migrated database needs nothing else."""
    held = hold_ceremony(database, small_settings(tmp_path, database_url), actor=ACTOR)
    assert held.root.subject == held.intermediate.issuer
