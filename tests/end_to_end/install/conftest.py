"""Fixtures: databases in which an authority was created from the operator's own machine."""

import secrets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.databases.postgres import create_database, drop_database
from tests.support.deployment.platforms import ROOT
from tests.support.deployment.played import PASSPHRASE, SCOPES, Remote, create_key, machine
from tests.support.programs.commands import sma

_HOME = {"CA_PASSWORD": PASSPHRASE, "SMA_TABLES": "20", "SMA_CA_KEY_TYPE": "ec-p256"}
"""The variables of the operator's own machine, apart from DATABASE_URL."""


@pytest.fixture(scope="session")
def template(postgres_admin_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Yield the name of a database in which `sma init` ran at home, and nothing else."""
    name, home = f"template_{secrets.token_hex(8)}", tmp_path_factory.mktemp("home")
    url = create_database(postgres_admin_url, name)
    made = sma("init", environ=machine(_HOME | {"DATABASE_URL": url}), cwd=home)
    assert made.returncode == 0, made.stderr
    assert [file.name for file in home.rglob("*.key")] == [
        "simulated-mfg-root-ca.postgresql.key"
    ], "the root's key stays at home"
    yield name
    drop_database(postgres_admin_url, name)


@pytest.fixture
def remote_url(template: str, postgres_admin_url: str) -> Iterator[str]:
    """Yield the URL of a database of this test, with an authority and without access keys."""
    name = f"platform_{secrets.token_hex(8)}"
    yield create_database(postgres_admin_url, name, template)
    drop_database(postgres_admin_url, name)


@pytest.fixture
def remote(remote_url: str, tmp_path: Path) -> Remote:
    """Return a database with an authority, and an access key of each scope."""
    environ = machine({"DATABASE_URL": remote_url, "CA_PASSWORD": PASSPHRASE})
    return Remote(
        remote_url, {scope: create_key(environ, tmp_path / scope, scope) for scope in SCOPES}
    )


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the wheel of this project, made from the sdist as `make dist` does."""
    folder = tmp_path_factory.mktemp("dist")
    uv = Path(sys.executable).parent / "uv"
    build = [str(uv), "build", "-q", "--python", sys.executable, "--out-dir", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, timeout=300)
    [made] = folder.glob("*.whl")
    return made
