"""Create access keys for tests, with the project's own commands and code."""

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

from birthmark_sma.authority.access.keys import IssuedKey, KeyTerms, create_key
from birthmark_sma.authority.access.store import KeyScope, change_key
from birthmark_sma.storage.engine import Database
from tests.support.devices.actors import ACTOR
from tests.support.programs.commands import sma
from tests.support.programs.running import Running, query, start, wait_until
from tests.support.programs.server import server_environ

SEEN_SECONDS = 1.0
"""Upper limit for the time until every process of a server has read a changed key."""
_KNOWN_SECONDS = 10.0  # on a busy machine


def bearer(key: str) -> dict[str, str]:
    """Return the Authorization header with a key (RFC 6750)."""
    return {"Authorization": f"Bearer {key}"}


def issue(database: Database, name: str, scope: str, **terms: Any) -> IssuedKey:
    """Create a key in this process, without a command."""
    return create_key(database, KeyTerms(name, KeyScope(scope), **terms), actor=ACTOR)


def secret_of(issued: IssuedKey) -> str:
    """Return the secret of a key. Fails for a key that stands for a client certificate."""
    assert issued.secret is not None
    return issued.secret


UNLIMITED = tuple(
    f"--rate-{kind}=none"
    for kind in ("provision", "validate", "failures", "admin", "ocsp", "guesses", "renew")
)
"""Options that turn all rate limits off, for servers that get many requests of tests."""


def start_with_keys(
    data_dir: Path, database_url: str, *arguments: str, **environ: str
) -> tuple[Running, dict[str, str]]:
    """Create an authority and a key of each scope, and start a server that requires keys.

    Return the server, and the keys by scope. There are no rate limits unless `arguments` set some.
    """
    url = None if database_url.startswith("sqlite:") else database_url
    settings = server_environ(data_dir, url) | environ
    if url is None or not query(url, "SELECT 1 FROM pg_tables WHERE tablename = 'authority'"):
        new_authority = sma("init", environ=settings)
        assert new_authority.returncode == 0, new_authority.stderr
    keys = {}
    for scope in KeyScope:
        made = sma("keys", "create", f"a {scope}", "--scope", scope, "--json", environ=settings)
        assert made.returncode == 0, made.stderr
        keys[scope.value] = json.loads(made.stdout)["key"]
    running = start(data_dir, database_url, "--access", "keys", *UNLIMITED, *arguments, **environ)
    return running, keys


def create_known_key(running: Running, name: str, *options: str) -> str:
    """Create a key with the command while a server of one process runs, and return its secret.

    Return once the server knows it.
    """
    made = sma("keys", "create", name, "--json", *options, environ=running.environ)
    assert made.returncode == 0, made.stderr
    secret: str = json.loads(made.stdout)["key"]
    wait_until_known(running, secret)
    return secret


def wait_until_known(running: Running, secret: str) -> None:
    """Return once a server of one process knows this key, and with it all earlier ones."""
    with running.client(headers=bearer(secret)) as client:
        # 401 before, or 429 where guesses are limited.
        wait_until(lambda: client.get("/health").status_code == 200, _KNOWN_SECONDS)


def expired(database: Database, name: str, scope: str) -> str:
    """Create a key whose expiry is in the past, and return its secret."""
    issued = issue(database, name, scope)
    with database.write() as transaction:
        past = issued.key.created_at - timedelta(seconds=1)
        change_key(transaction, issued.key.key_id, expires_at=past)
    return secret_of(issued)
