"""Create authorities to measure, as an operator would, each in its own database.

`bench.parts.stage` creates them. The real command line and the real server run in processes of
their own.
"""

import contextlib
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import text

from birthmark_sma.authority.authority import Authority, open_authority
from birthmark_sma.config import load_settings
from birthmark_sma.pki.keys.ca_keys import CaKeyType
from birthmark_sma.storage.engine import open_database
from tests.support.databases.postgres import Postgres
from tests.support.programs.running import query
from tests.support.programs.server import REAL_SMA, Server, server_environ


@dataclass(frozen=True, slots=True)
class Site:
    """An authority to measure. `database_pid` is PostgreSQL's main process, or None (SQLite)."""

    data_dir: Path
    environ: dict[str, str]
    database_url: str
    database_pid: int | None

    @property
    def uses_sqlite(self) -> bool:
        """True for SQLite, false for PostgreSQL."""
        return self.database_pid is None

    def serve(self, *arguments: str, program: Sequence[str] = REAL_SMA) -> Server:
        """Start the server on this authority. `program` replaces `sma` by a variant of it."""
        url = None if self.uses_sqlite else self.database_url
        return Server(
            self.data_dir, *arguments, database_url=url, environ=self.environ, program=program
        )

    @contextlib.contextmanager
    def opened(self) -> Iterator[Authority]:
        """Open the authority in this process, to fill it and to make camera tokens."""
        authority = open_authority(load_settings({}, self.environ))
        try:
            yield authority
        finally:
            authority.close()

    def forget_tokens(self) -> None:
        """Empty the replay ledger, so that all tokens count as new."""
        verb = "DELETE FROM" if self.uses_sqlite else "TRUNCATE"
        with closing(open_database(self.database_url)) as database, database.write() as transaction:
            for table in ("sighted_tokens", "resubmitted_tokens"):
                transaction.execute(text(f"{verb} {table}"))

    def recorded_since(self, moment: str) -> tuple[int, int]:
        """Return the number of audit rows since `moment`, and how many of them are no PASS."""
        [(rows, failed)] = query(
            self.database_url,
            "SELECT count(*), count(*) FILTER (WHERE validation_result <> 'PASS')"
            " FROM validation_history WHERE validated_at >= ?",
            moment,
        )
        return rows, failed


def create(
    folder: Path, postgres: Postgres | None, name: str, *, key_type: CaKeyType = CaKeyType.RSA_4096
) -> Site:
    """Create an authority of the standard sizes, on SQLite if `postgres` is None.

    Raises RuntimeError if `sma init` fails.
    """
    data_dir = folder / name
    url = None if postgres is None else postgres.create_database(name)
    environ = server_environ(data_dir, url) | {"SMA_CA_KEY_TYPE": key_type.value}
    done = subprocess.run(
        [*REAL_SMA, "init"], env=environ, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise RuntimeError(f"The authority could not be created: {done.stderr}")
    pid = None
    if postgres is not None:
        # The first line of the file is the process id of PostgreSQL's main process.
        pid = int((postgres.data_directory / "postmaster.pid").read_text().split()[0])
    return Site(data_dir, environ, url or f"sqlite:///{data_dir / 'sma.db'}", pid)
