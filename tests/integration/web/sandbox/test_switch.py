"""Nothing of the sandbox is reachable without the flag, and the flag opens no other authority."""

import asyncio
from contextlib import closing
from pathlib import Path

import pytest
from starlette.types import Message

from birthmark_sma.authority.authority import open_authority
from birthmark_sma.authority.initialisation import initialise
from birthmark_sma.errors import ConfigurationError, ProfileViolationError
from birthmark_sma.pki import certificates, profiles
from birthmark_sma.pki.keys import ca_keys
from birthmark_sma.storage.engine import open_database
from birthmark_sma.storage.migration import schema_revision
from birthmark_sma.web.api.app import create_app
from birthmark_sma.web.pipeline import Application
from birthmark_sma.web.sandbox import scenario_catalog
from birthmark_sma.web.sandbox.application import SandboxApplication
from tests.support.authorities import execute, migrate_to, quiet, small_settings
from tests.support.cameras.camera import PROVISION, VALIDATE, provision_body
from tests.support.devices.actors import ACTOR
from tests.support.pki.chains import NOW
from tests.support.programs.commands import sma
from tests.support.programs.running import Running, start
from tests.support.programs.server import server_environ

SMALL = {"SMA_TABLES": "10", "SMA_KEYS_PER_TABLE": "100"}


def refused(data_dir: Path, *arguments: str, **environ: str) -> str:
    """What a command says that has to fail."""
    ran = sma(*arguments, environ=server_environ(data_dir) | SMALL | environ)
    assert ran.returncode != 0, ran.stdout
    assert "Traceback" not in ran.stderr
    return ran.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("--host", "0.0.0.0"),
        ("--host", "::"),
        ("--access", "keys"),
        ("--trusted-proxies", "10.0.0.1"),
        ("--public-url", "https://sma.example.org"),
        ("--tls-client-ca", "clients.crt"),
        ("--kek-file", "kek"),
        ("--kek-command", "kms decrypt"),
        ("--workers", "2"),
        ("--audit-retention-days", "30"),
        ("--tables", "9001"),
    ],
)
def test_never_together_with_what_is_in_earnest(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    """Threat 51: refused in a sentence, before anything is founded."""
    said = refused(tmp_path / "data", "serve", "--sandbox", "--port", "0", *arguments)
    assert "sandbox" in said
    assert not (tmp_path / "data").exists()


def test_no_variable_and_no_file_switches_it_on(tmp_path: Path) -> None:
    """Threat 51: only a flag, which somebody types."""
    data_dir = tmp_path / "data"
    assert "SMA_SANDBOX" in refused(data_dir, "ca", "show", SMA_SANDBOX="true")
    file = tmp_path / "sma.toml"
    file.write_text("sandbox = true\n")
    assert "sandbox" in refused(data_dir, "ca", "show", SMA_CONFIG_FILE=str(file))


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
@pytest.mark.parametrize("first", ["", "--sandbox"])
def test_an_authority_serves_as_what_it_was_founded_as(
    tmp_path: Path, request: pytest.FixtureRequest, kind: str, first: str
) -> None:
    """Threat 51: neither way, on both kinds of database, and nothing is changed by trying."""
    url = request.getfixturevalue("postgres_url") if kind == "postgresql" else None
    environ = server_environ(tmp_path / "data", url) | SMALL
    as_founded = [first] if first else []
    as_the_other = [] if first else ["--sandbox"]
    new_authority = sma("init", *as_founded, environ=environ)
    assert new_authority.returncode == 0, new_authority.stderr
    for command in (("serve", "--port", "0"), ("init",)):
        ran = sma(*command, *as_the_other, environ=environ)
        assert ran.returncode != 0
        assert "founded as a sandbox" in ran.stderr
        assert "Traceback" not in ran.stderr
    assert sma("init", *as_founded, environ=environ).returncode == 0


def test_an_older_authority_is_not_even_migrated_by_trying(
    tmp_path: Path, database_url: str
) -> None:
    """Threat 51: `--sandbox` on a database of an earlier program, which had no sandboxes."""
    settings = small_settings(tmp_path, database_url, kek_file=None)
    with closing(open_database(database_url)) as database:
        migrate_to(database, "0001")
        execute(
            database,
            "INSERT INTO authority (id, tables, keys_per_table, created_at)"
            " VALUES (1, 6, 16, '2026-01-01 00:00:00+00:00')",
        )
        with pytest.raises(ConfigurationError, match="not founded as a sandbox"):
            initialise(settings, quiet, sandbox=True, actor=ACTOR)
        with database.read() as connection:
            assert schema_revision(connection) == "0001"


@pytest.mark.parametrize("sandbox", [True, False])
def test_the_application_looks_for_itself(tmp_path: Path, *, sandbox: bool) -> None:
    """Threat 51: should a command forget to, an application of the wrong kind does not start."""
    settings = small_settings(tmp_path, None, kek_file=None)
    initialise(settings, quiet, sandbox=not sandbox, actor=ACTOR)
    front = SandboxApplication if sandbox else Application
    app = create_app(lambda: open_authority(settings), front=front)

    async def receive() -> Message:
        return {"type": "lifespan.startup"}

    async def send(_: Message) -> None:
        """Starlette says that it failed, and raises."""

    with pytest.raises(ConfigurationError, match="founded as a sandbox"):
        asyncio.run(app({"type": "lifespan", "app": app, "state": {}}, receive, send))


def test_an_authority_that_is_none_knows_nothing_of_it(tmp_path: Path) -> None:
    """Threat 51: header, serials and table ids of scripts mean nothing; there is no /sandbox."""
    running: Running = start(tmp_path / "data", "sqlite:", **SMALL)
    with running.server, running.client() as client:
        token = {
            "encrypted_nuc_hash": "00" * 48,
            "table_id": 9_000,
            "key_index": 0,
            "nonce": "00" * 12,
        }
        for each in scenario_catalog.ALL:
            if each.table_id is not None:
                answer = client.post(VALIDATE, json=token | {"table_id": each.table_id})
                assert (answer.status_code, answer.json()["error"]) == (400, "Unknown table ID")
            asked = {scenario_catalog.HEADER: each.name}
            answer = client.post(VALIDATE, json=token | {"table_id": 1}, headers=asked)
            assert (answer.status_code, answer.json()["validation_result"]) == (200, "FAIL")
            assert client.get("/health", headers=asked).status_code == 200
            if each.serial is not None:
                body = provision_body(f"{each.serial}-1")
                answer = client.post(PROVISION, json=body, headers=asked)
                assert answer.status_code == 200
            assert not {name for name in answer.headers if "sandbox" in name}
        assert client.get("/sandbox").status_code == 404
        assert "sandbox" not in client.get("/openapi.json").text.lower()
        states = running.rows("SELECT DISTINCT status FROM registered_devices")
        assert states == [("active",)]


def test_neither_signs_for_the_other() -> None:
    """Threat 51: a device of the one under a CA of the other is not even signed."""
    key = ca_keys.generate(ca_keys.CaKeyType.EC_P256)
    for root, intermediate in (
        (profiles.SANDBOX_ROOT, profiles.INTERMEDIATE),
        (profiles.ROOT, profiles.SANDBOX_INTERMEDIATE),
    ):
        prepared = certificates.prepare_root(
            key.public_key, now=NOW, serial_number=1 << 100, profile=root
        )
        issuer = certificates.sign(prepared, key)
        below = certificates.prepare_intermediate(
            key.public_key, issuer=issuer, now=NOW, serial_number=1 << 101, profile=intermediate
        )
        with pytest.raises(ProfileViolationError, match="sandbox"):
            certificates.sign(below, key, issuer=issuer)
