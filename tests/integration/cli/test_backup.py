"""`sma backup` and `sma restore`: what is in a backup, and what is refused in one sentence."""

import json
import os
import resource
import secrets
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import psycopg
import pytest
from cryptography import x509

from birthmark_sma.pki.keys.ca_keys import load_encrypted
from tests.integration.cli.conftest import Place, assert_refused
from tests.support.programs.commands import Background, sma
from tests.support.programs.running import query
from tests.support.programs.server import PASSPHRASE, server_environ

SMALL = {"SMA_TABLES": "3", "SMA_KEYS_PER_TABLE": "5"}

RESTORED = ["authority.json", "sma.db"]
"""The files in a data directory after a restore of SQLite."""


@pytest.fixture
def folder(place: Place, tmp_path: Path) -> Path:
    """A backup."""
    made = place.sma("backup", str(tmp_path / "backup"))
    assert made.returncode == 0, made.stderr
    assert "The passphrase is not in it" in made.stdout
    return tmp_path / "backup"


def passphrase(place: Place) -> dict[str, str]:
    return {"CA_PASSWORD": (place.data_dir / "ca-password").read_text().strip()}


def other(tmp_path: Path) -> Place:
    return Place(tmp_path / "other")


def test_what_is_in_it(place: Place, folder: Path) -> None:
    """Threats 13, 28 and 29: its owner's alone, with no secret in the clear."""
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {each.name for each in folder.iterdir()} == {"manifest.json", "database.sqlite"}
    secret = (place.data_dir / "ca-password").read_bytes().strip()
    for each in folder.iterdir():
        assert stat.S_IMODE(each.stat().st_mode) == 0o600
        assert secret not in each.read_bytes()
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["rows"]["key_tables"] == 2_500
    shown = json.loads(place.sma("ca", "show", "--json").stdout)
    fingerprint = shown["root"]["sha256_fingerprint"].replace(":", "").lower()
    assert manifest["certificates"]["root"] == fingerprint


def test_a_lock_file_that_a_killed_server_left_keeps_nobody_from_restoring(
    place: Place, folder: Path
) -> None:
    (place.data_dir / "sma.db").unlink()
    lock, journal = (place.data_dir / f"sma.db-{end}" for end in ("crl_publication", "wal"))
    lock.touch()
    journal.touch()
    assert_refused(place.sma("restore", str(folder)), 5, "sma.db-wal exists already")
    journal.unlink()
    restored = place.sma("restore", str(folder))
    assert restored.returncode == 0, restored.stderr


def test_secrets_only_when_asked(place: Place, tmp_path: Path) -> None:
    """Then it restores without anything else, to the same files."""
    made = place.sma("backup", str(tmp_path / "all"), "--with-secrets")
    assert made.returncode == 0, made.stderr
    assert "It contains the passphrase" in made.stdout
    restored = other(tmp_path).sma("restore", str(tmp_path / "all"))
    assert restored.returncode == 0, restored.stderr
    for name in ("ca-password", "simulated-mfg-root-ca.key"):
        assert (tmp_path / "other" / name).read_bytes() == (place.data_dir / name).read_bytes()
    assert other(tmp_path).sma("doctor").returncode == 0


def test_restored(place: Place, folder: Path, tmp_path: Path) -> None:
    restored = other(tmp_path).sma("restore", str(folder), settings=passphrase(place))
    assert restored.returncode == 0, restored.stderr
    assert "2,500 key tables" in restored.stdout
    assert restored.stderr == ""
    assert sorted(each.name for each in (tmp_path / "other").iterdir()) == [
        "authority.json",
        "sma.db",
    ]
    assert stat.S_IMODE((tmp_path / "other" / "sma.db").stat().st_mode) == 0o600
    again = other(tmp_path).sma("restore", str(folder), settings=passphrase(place))
    assert_refused(again, 5, "exists already")


def test_one_restore_at_a_time(place: Place, folder: Path, tmp_path: Path) -> None:
    """Of several at once one succeeds, and what it leaves is whole; a killed one is run again."""
    elsewhere = other(tmp_path)
    elsewhere.data_dir.mkdir(mode=0o700)
    (elsewhere.data_dir / ".sma.db.restoring").write_bytes(b"cut off")
    environ = server_environ(elsewhere.data_dir) | passphrase(place)
    all_at_once = [Background("restore", str(folder), environ=environ) for _ in range(4)]
    for each in all_at_once:
        each.communicate()
    assert sorted(each.wait() for each in all_at_once) == [0, 5, 5, 5]
    assert sorted(each.name for each in elsewhere.data_dir.iterdir()) == [
        "authority.json",
        "sma.db",
    ]
    assert elsewhere.sma("secrets", "check", settings=passphrase(place)).returncode == 0


def test_no_backup_is_called_as_an_unfinished_one(place: Place, tmp_path: Path) -> None:
    """The next backup would remove it."""
    refused = place.sma("backup", str(tmp_path / ".nightly.sma-backup"))
    assert_refused(refused, 3, "Choose another name")
    assert not (tmp_path / ".nightly.sma-backup").exists()


def test_what_exists_is_never_overwritten(place: Place, folder: Path) -> None:
    before = (folder / "manifest.json").read_bytes()
    assert_refused(place.sma("backup", str(folder)), 5, "exists already")
    assert (folder / "manifest.json").read_bytes() == before
    assert_refused(place.sma("restore", str(folder)), 5, "exists already")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def change(**values: object) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return write


def one_more(path: Path) -> None:
    told = json.loads(path.read_text())
    told["rows"]["key_tables"] += 1
    path.write_text(json.dumps(told))


def write(content: str) -> Callable[[Path], None]:
    def written(path: Path) -> None:
        path.write_text(content)

    return written


def without_devices(path: Path) -> None:
    told = json.loads(path.read_text())
    del told["rows"]["registered_devices"]
    path.write_text(json.dumps(told))


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def elsewhere_named(path: Path) -> None:
    told = json.loads(path.read_text())
    told["files"]["../../etc/passwd"] = told["files"]["database.sqlite"]
    path.write_text(json.dumps(told))


@pytest.mark.parametrize(
    ("name", "damage", "words"),
    [
        ("database.sqlite", cut, "was changed after the backup was made"),
        ("database.sqlite", flip, "was changed after the backup was made"),
        ("database.sqlite", Path.unlink, "is missing"),
        ("manifest.json", cut, "damaged or incomplete"),
        ("manifest.json", Path.unlink, "is not a backup"),
        ("manifest.json", one_more, "proof of the backup failed"),
        ("manifest.json", elsewhere_named, "damaged"),
        ("manifest.json", write('{"format": Infinity}'), "damaged"),
        ("manifest.json", write("[" * 100_000), "damaged"),
        ("manifest.json", write(" " * 2_000_000 + "{}"), "damaged"),
        ("manifest.json", without_devices, "does not list every table"),
        ("manifest.json", change(key_encryption_keys=[]), "damaged"),
        ("manifest.json", change(format=0), "damaged"),
        ("manifest.json", change(made_by="\x1b[2J", schema_revision="0001"), "damaged"),
        ("manifest.json", pipe, "not a file"),
        ("database.sqlite", pipe, "not a file"),
        ("manifest.json", change(certificates={}), "proof of the backup failed"),
        ("manifest.json", change(format=2), "newer program"),
        ("manifest.json", change(schema_revision="9999"), "newer program"),
        ("manifest.json", change(schema_revision="0001"), "sma migrate"),
        ("manifest.json", change(kind="postgresql"), "no database"),
    ],
)
def test_a_damaged_backup(
    place: Place, folder: Path, name: str, damage: Callable[[Path], None], words: str
) -> None:
    """It is refused in one sentence, and nothing is left where it should have gone."""
    damage(folder / name)
    elsewhere = other(folder.parent)
    refused = elsewhere.sma("restore", str(folder), settings=passphrase(place))
    assert_refused(refused, 3, words)
    assert not elsewhere.data_dir.exists() or not list(elsewhere.data_dir.iterdir())


@pytest.mark.parametrize("secrets", [(), ("--with-secrets",)])
def test_a_backup_from_before_a_rotation(
    place: Place, tmp_path: Path, secrets: tuple[str, ...]
) -> None:
    """Threat 47: its passphrase, which nobody ever saw, is kept, found and in force again."""
    backup, late = str(tmp_path / "early"), str(tmp_path / "late")
    first = (place.data_dir / "ca-password").read_text()
    assert place.sma("backup", backup, *secrets).returncode == 0
    for _ in range(2):
        assert place.sma("secrets", "rotate").returncode == 0
    newest = (place.data_dir / "ca-password").read_text()
    assert place.sma("backup", late).returncode == 0
    for file in place.data_dir.glob("sma.db*"):
        file.unlink()

    restored = place.sma("restore", backup)
    assert restored.returncode == 0, restored.stderr
    assert (place.data_dir / "ca-password").read_text() == first
    assert place.sma("secrets", "check").returncode == 0
    assert place.sma("ca", "export", "--output-dir", str(tmp_path / "ca")).returncode == 0
    root_key = load_encrypted(
        (place.data_dir / "simulated-mfg-root-ca.key").read_text(), first.strip().encode()
    )
    root = x509.load_pem_x509_certificate((tmp_path / "ca/simulated-mfg-root-ca.crt").read_bytes())
    assert root_key.public_key == root.public_key()

    # And back again: nothing that opens a backup was thrown away.
    for file in place.data_dir.glob("sma.db*"):
        file.unlink()
    assert place.sma("restore", late).returncode == 0
    assert (place.data_dir / "ca-password").read_text() == newest
    assert place.sma("secrets", "check").returncode == 0


def test_earlier_passphrases_are_among_the_secrets(place: Place, tmp_path: Path) -> None:
    """Threat 47: they open older backups, also where the data directory is lost."""
    early, late = str(tmp_path / "early"), str(tmp_path / "late")
    assert place.sma("backup", early).returncode == 0
    assert place.sma("secrets", "rotate").returncode == 0
    earlier = (place.data_dir / "ca-password.previous").read_text()
    assert place.sma("backup", late, "--with-secrets").returncode == 0
    elsewhere = other(tmp_path)
    kept = elsewhere.data_dir / "ca-password.previous"
    restored = elsewhere.sma("restore", late)
    assert restored.returncode == 0, restored.stderr
    assert (kept.read_text(), stat.S_IMODE(kept.stat().st_mode)) == (earlier, 0o600)
    (elsewhere.data_dir / "sma.db").unlink()
    assert elsewhere.sma("restore", early).returncode == 0
    assert (elsewhere.data_dir / "ca-password").read_text() == earlier
    # Those that are there already stay. None is lost, and none is listed twice.
    newest = (place.data_dir / "ca-password").read_text()
    kept.write_text(f"another\n{newest}")
    (elsewhere.data_dir / "sma.db").unlink()
    assert elsewhere.sma("restore", late).returncode == 0
    assert (elsewhere.data_dir / "ca-password").read_text() == newest
    assert kept.read_text() == f"{earlier}another\n{newest}"


def test_a_wrong_passphrase(folder: Path, tmp_path: Path) -> None:
    """It is found before anything is written."""
    refused = other(tmp_path).sma("restore", str(folder), settings={"CA_PASSWORD": "wrong"})
    assert_refused(refused, 3, "another key-encryption key")
    assert_refused(other(tmp_path).sma("restore", str(folder)), 3, "CA_PASSWORD is not set")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("command", ["backup", "restore"])
def test_a_full_disk(place: Place, folder: Path, tmp_path: Path, command: str) -> None:
    """One sentence, and nothing is left."""
    target = tmp_path / "second"
    arguments = {"backup": [str(target)], "restore": [str(folder), "--data-dir", str(target)]}
    limit = 100_000
    run = Background(
        *(command, *arguments[command]),
        environ=server_environ(place.data_dir) | passphrase(place),
        before=[partial(resource.setrlimit, resource.RLIMIT_FSIZE, (limit, limit))],
    )
    said, told = run.communicate()
    assert_refused(subprocess.CompletedProcess(command, run.wait(), said, told), 3)
    assert not target.exists() or not list(target.iterdir())
    assert list(tmp_path.glob(".*")) == []


def test_nothing_to_back_up(empty: Place, tmp_path: Path) -> None:
    assert_refused(empty.sma("backup", str(tmp_path / "backup")), 4, "sma init")
    assert not (tmp_path / "backup").exists()


# --- PostgreSQL's own programs


@pytest.fixture
def new_authority(postgres_url: str, tmp_path: Path, postgres_binaries: Path) -> dict[str, str]:
    """A small authority on PostgreSQL, whose programs are on PATH."""
    environ = server_environ(tmp_path / "data", postgres_url)
    environ["PATH"] = f"{postgres_binaries}:{os.environ['PATH']}"
    assert sma("init", environ=environ | SMALL).returncode == 0
    return environ


def test_postgresql_into_a_database_that_is_not_empty(
    new_authority: dict[str, str], tmp_path: Path
) -> None:
    """Nothing in it is touched; and the password is on no command line."""
    folder = tmp_path / "backup"
    made = sma("backup", str(folder), environ=new_authority)
    assert made.returncode == 0, made.stderr
    refused = sma("restore", str(folder), environ=new_authority)
    assert_refused(refused, 5, "not empty")
    assert PASSPHRASE.encode() not in (folder / "manifest.json").read_bytes()
    wrong = sma(
        "restore", str(folder), environ=new_authority | {"CA_PASSWORD": secrets.token_hex(16)}
    )
    assert_refused(wrong, 3, "another key-encryption key")
    del new_authority["DATABASE_URL"]
    assert_refused(
        sma("restore", str(folder), environ=new_authority), 3, "is a backup of PostgreSQL"
    )


def test_postgresql_with_secrets(
    new_authority: dict[str, str], postgres_url: str, tmp_path: Path
) -> None:
    """The root's key comes back as well; the passphrase is not the data directory's to keep."""
    root_key = tmp_path / "data" / "simulated-mfg-root-ca.postgresql.key"
    before = root_key.read_bytes()
    (tmp_path / "data" / "ca-password").write_text("of another authority, on SQLite")
    folder = tmp_path / "backup"
    made = sma("backup", str(folder), "--with-secrets", environ=new_authority)
    assert made.returncode == 0, made.stderr
    assert "The passphrase is not in it" in made.stdout
    assert "--database-url SOMEWHERE-EMPTY" in made.stdout
    query_only(postgres_url, "DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    root_key.write_text("another one")
    assert_refused(sma("restore", str(folder), environ=new_authority), 5, "never overwritten")
    assert query(postgres_url, "SELECT 1 FROM pg_tables WHERE schemaname = 'public'") == []
    elsewhere = new_authority | {"SMA_DATA_DIR": str(tmp_path / "elsewhere")}
    restored = sma("restore", str(folder), environ=elsewhere)
    assert restored.returncode == 0, restored.stderr
    assert (tmp_path / "elsewhere" / root_key.name).read_bytes() == before

    query_only(postgres_url, "DROP TABLE validation_history_unforeseen")
    looked = sma("doctor", environ=elsewhere)
    assert looked.returncode == 2, "critical, and no crash"
    assert "these parts are missing: validation_history_unforeseen" in looked.stdout


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (None, "not on PATH"),
        ("echo 'pg_dump (PostgreSQL) 9.6.1'", "too old"),
        ("echo pg_dump for all", "did not print its version"),
        ("exit 1", "cannot be run"),
        ("test $1 = --version && echo 'pg_dump (PostgreSQL) 99.1' || exit 3", "pg_dump failed"),
    ],
)
def test_postgresql_without_a_pg_dump_that_fits(
    new_authority: dict[str, str], tmp_path: Path, said: str | None, words: str
) -> None:
    programs = tmp_path / "programs"
    programs.mkdir()
    if said is not None:
        (programs / "pg_dump").write_text(f"#!/bin/sh\n{said}\n")
        (programs / "pg_dump").chmod(0o755)
    refused = sma(
        "backup", str(tmp_path / "backup"), environ=new_authority | {"PATH": str(programs)}
    )
    assert_refused(refused, 3, words)
    assert not (tmp_path / "backup").exists()
    assert list(tmp_path.glob(".*")) == []


def test_a_dump_that_cannot_be_restored(
    new_authority: dict[str, str], postgres_url: str, tmp_path: Path
) -> None:
    """PostgreSQL is filled wholly or not at all."""
    folder = tmp_path / "backup"
    assert sma("backup", str(folder), environ=new_authority).returncode == 0
    query_only(postgres_url, "DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    programs = tmp_path / "programs"
    programs.mkdir()
    real = shutil.which("pg_restore", path=new_authority["PATH"])
    (programs / "pg_restore").write_text(
        f'#!/bin/sh\ntest "$1" = --version && exec {real} --version\n'
        f'head -c 20000 | exec {real} "$@"\n'
    )
    (programs / "pg_restore").chmod(0o755)
    cut_off = new_authority | {"PATH": f"{programs}:{new_authority['PATH']}"}
    assert_refused(sma("restore", str(folder), environ=cut_off), 3, "pg_restore failed")
    assert query(postgres_url, "SELECT 1 FROM pg_tables WHERE schemaname = 'public'") == []
    restored = sma("restore", str(folder), environ=new_authority)
    assert restored.returncode == 0, restored.stderr
    assert sma("tables", "show", environ=new_authority).returncode == 0


@pytest.mark.parametrize("moment", ["before", "after"])
def test_postgresql_while_partitions_are_dropped(
    new_authority: dict[str, str], postgres_url: str, tmp_path: Path, moment: str
) -> None:
    """What is counted is what was dumped, whoever prunes at the wrong moment; it restores."""
    (day,) = query(postgres_url, "SELECT max(relname) FROM pg_class WHERE relname ~ '_[0-9]{8}$'")
    query_only(
        postgres_url,
        "INSERT INTO validation_history (encrypted_nuc_hash, table_id, key_index,"
        " validation_result, reason, validated_at) VALUES ('', 0, 0, 'FAIL', 'unknown_device',"
        f" to_timestamp('{day[0][-8:]} 12 UTC', 'YYYYMMDD HH24 TZ'))",
    )
    drop = (
        f"{sys.executable} -c \"import psycopg; c = psycopg.connect('{postgres_url}');"
        f" c.execute('SET lock_timeout = 200'); c.execute('DROP TABLE {day[0]}'); c.commit()\""
        " 2>/dev/null"
    )
    programs = tmp_path / "programs"
    programs.mkdir()
    real = f'{shutil.which("pg_dump", path=new_authority["PATH"])} "$@"'
    steps = [drop, real] if moment == "before" else [real, drop]
    (programs / "pg_dump").write_text(
        "#!/bin/sh\n"
        + "\n".join([f'test "$1" = --version && exec {real}', *steps, "exit 0"])
        + "\n"
    )
    (programs / "pg_dump").chmod(0o755)
    folder = tmp_path / "backup"
    busy = new_authority | {"PATH": f"{programs}:{new_authority['PATH']}"}
    made = sma("backup", str(folder), environ=busy)
    assert made.returncode == 0, made.stderr
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["rows"]["validation_history"] == 1
    query_only(postgres_url, "DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    restored = sma("restore", str(folder), environ=new_authority)
    assert restored.returncode == 0, restored.stderr


def query_only(url: str, statement: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(statement.encode())
