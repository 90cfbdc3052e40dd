"""`sma init` and `sma migrate`."""

import json
import stat
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
)

from birthmark_sma.authority.authority import open_authority
from birthmark_sma.config import load_settings
from birthmark_sma.errors import WrongSecretError
from birthmark_sma.pki.keys.ca_keys import load_encrypted
from birthmark_sma.pki.keys.encrypted_key import is_slow_to_guess
from birthmark_sma.storage.schema import HEAD_REVISION
from tests.integration.cli.conftest import Place, assert_refused
from tests.support import derivation_cost
from tests.support.programs.commands import sma
from tests.support.programs.running import query
from tests.support.programs.server import REAL_SMA, server_environ

ROOT_KEY = "simulated-mfg-root-ca.key"


def mode(path: Path) -> int:
    """The permission bits of a file."""
    return stat.S_IMODE(path.stat().st_mode)


def tables_of(place: Place) -> list[tuple[object, ...]]:
    """Every key table of an authority on SQLite."""
    return query(
        f"sqlite:///{place.data_dir / 'sma.db'}", "SELECT table_id, master_key FROM key_tables"
    )


def test_init_tells_what_it_founded(empty: Place) -> None:
    """Threat 29: passphrase, root key and directory are their owner's alone."""
    new_authority = empty.sma("init")
    assert new_authority.returncode == 0, new_authority.stderr
    assert new_authority.stderr == ""
    assert "The authority is created." in new_authority.stdout
    assert "Simulated Mfg Root CA" in new_authority.stdout
    assert "Simulated Mfg Intermediate CA" in new_authority.stdout
    assert "safe place" in new_authority.stdout
    assert mode(empty.data_dir) == 0o700
    assert mode(empty.data_dir / "ca-password") == 0o600
    assert mode(empty.data_dir / ROOT_KEY) == 0o600
    passphrase = (empty.data_dir / "ca-password").read_text().strip()
    assert len(passphrase) >= 32
    assert passphrase not in new_authority.stdout


def test_the_register_is_its_owners_alone(empty: Place) -> None:
    """Threat 29: in a directory that others may enter they still cannot read the database."""
    empty.data_dir.mkdir(mode=0o755)
    assert empty.sma("init", "--tables", "5").returncode == 0
    for file in empty.data_dir.iterdir():
        assert mode(file) & 0o077 == 0, file.name


def test_init_twice_changes_nothing(empty: Place) -> None:
    """Threat 12: founding again never touches the key tables of devices in the field."""
    first = json.loads(empty.sma("init", "--json").stdout)
    assert first["created"] is True
    assert (first["tables"], first["keys_per_table"]) == (2_500, 1_000)
    assert set(first["root"]) >= {"subject", "not_before", "not_after", "sha256_fingerprint"}
    before = tables_of(empty)
    assert len(before) == 2_500
    files = files_of(empty)

    again = empty.sma("init", "--json")
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout) == {"created": False}
    assert "nothing was missing" in empty.sma("init").stdout
    assert tables_of(empty) == before
    assert files_of(empty) == files


def files_of(place: Place) -> dict[str, bytes]:
    """Return the content of the files but the database, and the one with the time of the init."""
    return {
        each.name: each.read_bytes()
        for each in place.data_dir.iterdir()
        if "sma.db" not in each.name and each.name != "authority.json"
    }


def test_the_ca_keys_are_encrypted(founded_place: Place) -> None:
    """Threat 5: neither CA key can be read without the passphrase, and none lies in the clear."""
    key_file = founded_place.data_dir / ROOT_KEY
    assert "BEGIN ENCRYPTED PRIVATE KEY" in key_file.read_text()
    [(sealed, older_form)] = query(
        f"sqlite:///{founded_place.data_dir / 'sma.db'}",
        "SELECT sealed_private_key, encrypted_private_key FROM ca_certificates"
        " WHERE name = 'intermediate'",
    )
    assert len(sealed) > 100
    assert older_form is None
    passphrase = founded_place.data_dir / "ca-password"
    for source, opens in ((f"file:{passphrase}", True), ("pass:", False), ("pass:guess", False)):
        opened = subprocess.run(
            ["openssl", "pkey", "-in", str(key_file), "-passin", source, "-noout"],
            capture_output=True,
            check=False,
        )
        assert (opened.returncode == 0) == opens


def test_postgresql_without_ca_password_founds_nothing(postgres_url: str, tmp_path: Path) -> None:
    """Threat 5: an unset CA_PASSWORD never means an unencrypted key, nor half an authority."""
    environ = server_environ(tmp_path / "data", postgres_url)
    del environ["CA_PASSWORD"]
    assert_refused(sma("init", environ=environ), 3, "CA_PASSWORD is not set", "PostgreSQL")
    assert not (tmp_path / "data").exists()
    tables = query(postgres_url, "SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
    assert tables == []


@pytest.mark.parametrize("passphrase", ["a", "Summer2026!", "Summer2026!!", "password1234"])
def test_an_easy_passphrase_creates_nothing(
    passphrase: str, empty: Place, postgres_url: str, tmp_path: Path
) -> None:
    """Threat 43: neither a file nor a table, on either kind of database."""
    environ = server_environ(empty.data_dir) | {"CA_PASSWORD": passphrase}
    assert_refused(sma("init", environ=environ), 3, "passphrase", "openssl rand")
    served = sma("serve", "--port", "0", environ=environ)
    assert served.returncode == 3
    assert "openssl rand" in served.stderr
    environ["DATABASE_URL"] = postgres_url
    assert_refused(sma("init", environ=environ), 3, "passphrase", "openssl rand")
    assert not empty.data_dir.exists()
    tables = query(postgres_url, "SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
    assert tables == []


@pytest.mark.usefixtures("full_derivation_cost")
def test_the_real_program_makes_guessing_slow(empty: Place) -> None:
    """Threat 43: the programs of all other tests derive keys at a low cost; this one does not."""
    done = subprocess.run(
        [*REAL_SMA, "init", "--tables", "3", "--keys-per-table", "5"],
        env=server_environ(empty.data_dir),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert is_slow_to_guess((empty.data_dir / ROOT_KEY).read_text())
    settings = load_settings({"data_dir": empty.data_dir}, {})
    open_authority(settings).close()
    derivation_cost.lower(derivation_cost.OF_AUTHORITIES)
    with pytest.raises(WrongSecretError):
        open_authority(settings)


def older_root_key(place: Place) -> Path:
    """Encrypt the root's key as older versions did, under the same passphrase."""
    path = place.data_dir / ROOT_KEY
    passphrase = (place.data_dir / "ca-password").read_bytes().strip()
    path.write_bytes(
        load_encrypted(path.read_text(), passphrase).key.private_bytes(
            Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(passphrase)
        )
    )
    assert not is_slow_to_guess(path.read_text())
    return path


def test_a_root_key_of_an_older_version_is_found_and_encrypted_anew(
    place: Place, tmp_path: Path
) -> None:
    """Threat 43: the doctor names the command, and no copy of the key is quick to guess at."""
    path = older_root_key(place)
    before = path.read_text()
    assert "Type sma init" in place.sma("secrets", "check").stdout
    assert "quick to guess at" in place.sma("doctor").stdout

    assert place.sma("ca", "export", "--output-dir", str(tmp_path / "ca")).returncode == 0
    assert place.sma("backup", str(tmp_path / "backup"), "--with-secrets").returncode == 0
    assert path.read_text() == before
    assert is_slow_to_guess((tmp_path / "ca" / ROOT_KEY).read_text())
    assert is_slow_to_guess((tmp_path / "backup" / ROOT_KEY).read_text())

    another = {"CA_PASSWORD": "another passphrase for tests alone"}
    refused = place.sma("backup", str(tmp_path / "2"), "--with-secrets", settings=another)
    assert_refused(refused, 3, "CA_PASSWORD does not open it")
    assert path.read_text() == before

    again = place.sma("init")
    assert "now encrypted with a slow one" in again.stderr
    assert is_slow_to_guess(path.read_text())
    assert mode(path) == 0o600
    passphrase = (place.data_dir / "ca-password").read_bytes().strip()
    assert load_encrypted(path.read_text(), passphrase).public_key == (
        load_encrypted(before, passphrase).public_key
    )
    assert place.sma("secrets", "check").returncode == 0


def test_postgresql_is_never_founded_unasked(postgres_url: str, tmp_path: Path) -> None:
    environ = server_environ(tmp_path / "data", postgres_url)
    assert_refused(sma("serve", "--port", "0", environ=environ), 4, "sma init")
    assert query(postgres_url, "SELECT 1 FROM pg_tables WHERE schemaname = 'public'") == []


def test_one_data_directory_for_sqlite_and_postgresql(place: Place, postgres_url: str) -> None:
    """Each authority has a root key file of its own, and finds it again.

    The operator wants two: that the directory had one must be forgotten on purpose.
    """
    (place.data_dir / "authority.json").unlink()
    before = (place.data_dir / ROOT_KEY).read_bytes()
    environ = server_environ(place.data_dir, postgres_url) | {"SMA_TABLES": "5"}
    made = sma("init", "--json", environ=environ)
    assert made.returncode == 0, made.stderr
    key_file = Path(json.loads(made.stdout)["root_key_file"])
    assert key_file == place.data_dir / "simulated-mfg-root-ca.postgresql.key"
    assert (place.data_dir / ROOT_KEY).read_bytes() == before
    for output in (place.data_dir.parent / "ca", place.data_dir.parent / "later"):
        exported = sma("ca", "export", "--output-dir", str(output), environ=environ)
        assert exported.returncode == 0, exported.stderr
        assert (output / ROOT_KEY).read_bytes() == key_file.read_bytes()
        (place.data_dir / "sma.db").unlink(missing_ok=True)


def test_a_root_key_file_of_an_older_version_is_still_found(
    postgres_url: str, tmp_path: Path
) -> None:
    """It had one name for both kinds of database."""
    environ = server_environ(tmp_path / "data", postgres_url) | {"SMA_TABLES": "5"}
    key_file = Path(json.loads(sma("init", "--json", environ=environ).stdout)["root_key_file"])
    key_file.rename(key_file.with_name(ROOT_KEY))
    assert ROOT_KEY in sma("secrets", "check", environ=environ).stdout


def test_sizes_and_key_type_are_chosen_once(empty: Place) -> None:
    arguments = ("--tables", "7", "--keys-per-table", "11", "--ca-key-type", "ec-p384")
    new_authority = json.loads(empty.sma("init", "--json", *arguments).stdout)
    assert (new_authority["tables"], new_authority["keys_per_table"]) == (7, 11)
    assert len(tables_of(empty)) == 7
    assert empty.sma("init").returncode == 0
    assert_refused(empty.sma("init", "--tables", "8"), 3, "7 tables of 11 keys")
    assert_refused(empty.sma("init", "--tables", "2"), 3, "equal to 3")


def test_a_key_encryption_key_may_come_from_a_file(empty: Place, tmp_path: Path) -> None:
    """Threats 13 and 29. Threat 29: a key file that others can read is refused."""
    kek = tmp_path / "kek"
    kek.write_text("ab" * 32 + "\n")
    kek.chmod(0o644)
    assert_refused(empty.sma("init", "--kek-file", str(kek)), 3, "chmod 600")
    kek.chmod(0o600)
    assert empty.sma("init", "--kek-file", str(kek), "--tables", "5").returncode == 0
    shown = json.loads(empty.sma("tables", "show", "--json").stdout)
    assert shown["wrapped_under"] == "file"
    assert_refused(empty.sma("tables", "populate"), 3, "SMA_KEK_FILE")
    kek.write_text("cd" * 32 + "\n")
    assert_refused(empty.sma("tables", "populate", "--kek-file", str(kek)), 3, "key-encryption key")
    kek.write_text("short")
    assert_refused(empty.sma("tables", "populate", "--kek-file", str(kek)), 3, "openssl rand")


def test_the_root_key_goes_where_it_is_told(empty: Place, tmp_path: Path) -> None:
    stick = tmp_path / "stick" / "root.key"
    assert empty.sma("init", "--tables", "5", "--root-key-file", str(stick)).returncode == 0
    assert mode(stick) == 0o600
    assert not (empty.data_dir / ROOT_KEY).exists()
    another = Place(tmp_path / "another")
    refused = another.sma("init", "--root-key-file", str(stick))
    assert_refused(refused, 3, "another authority")


@pytest.mark.parametrize("command", ["init", "serve"])
def test_a_forgotten_database_url_leaves_nothing_beside_a_root_key(
    empty: Place, command: str
) -> None:
    """Beside SQLite's file an authority on PostgreSQL of older versions finds its key no more."""
    empty.data_dir.mkdir(mode=0o700)
    key = empty.data_dir / ROOT_KEY
    key.write_text("the key of an authority on PostgreSQL")
    key.chmod(0o600)
    refused = empty.sma(command, settings={"PORT": "0"} if command == "serve" else {})
    assert_refused(refused, 3, "DATABASE_URL")
    assert "creating" not in refused.stderr
    assert list(empty.data_dir.iterdir()) == [key]


def test_migrate_says_where_the_database_stands(place: Place, empty: Place) -> None:
    current = {"before": HEAD_REVISION, "after": HEAD_REVISION}
    assert json.loads(place.sma("migrate", "--json").stdout) == current
    assert "already" in place.sma("migrate").stdout


def test_migrate_makes_no_empty_file(empty: Place) -> None:
    assert_refused(empty.sma("migrate"), 4, "sma init")
    assert not empty.data_dir.exists()


@pytest.mark.parametrize("url", ["mysql://x/y", "nonsense", "postgresql://[bad"])
def test_a_database_url_that_cannot_be_used(empty: Place, url: str) -> None:
    """Threat 28: the URL, which may hold a password, is not repeated."""
    refused = empty.sma("init", settings={"DATABASE_URL": url, "CA_PASSWORD": "not yet looked at"})
    assert_refused(refused, 3, "DATABASE_URL")
    assert url not in refused.stderr
