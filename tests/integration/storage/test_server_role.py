"""The role for servers on PostgreSQL: it serves, and cannot change the trail."""

import secrets
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest
from psycopg import sql

from birthmark_sma.authority.access.caller import Caller
from birthmark_sma.authority.background.audit_checkpoints import AuditCheckpoints
from birthmark_sma.authority.background.audit_upkeep import AuditUpkeep
from birthmark_sma.authority.background.privacy.coarsening import coarsen
from birthmark_sma.authority.background.retention import prune
from birthmark_sma.authority.operations.doctor.postgresql_checks import check_server
from birthmark_sma.errors import ConfigurationError
from birthmark_sma.storage import health, partitions
from birthmark_sma.storage.engine import open_database
from birthmark_sma.storage.migration import migrate
from birthmark_sma.storage.postgresql.server_role import SERVER_ROLE, TRAIL
from tests.support.audit_rows import append_rows
from tests.support.authorities import new_authority, new_camera, opened, small_settings
from tests.support.databases.chained_trail import make_row
from tests.support.days import DAY, current_time, today
from tests.support.devices.actors import ACTOR

REFUSED = (
    "UPDATE {} SET {} = NULL",
    "DELETE FROM {}",
    "TRUNCATE {}",
    "DROP TABLE {}",
    "ALTER TABLE {} ADD COLUMN more integer",
    "CREATE RULE no_more AS ON INSERT TO {} DO INSTEAD NOTHING",
)


EVERYTHING = (
    "SELECT * FROM validation_history",
    "SELECT * FROM audit_checkpoints",
    "SELECT * FROM administrative_acts",
    "SELECT * FROM validation_counters",
)


@pytest.fixture
def server_url(postgres_url: str, tmp_path: Path) -> Iterator[str]:
    """The URL of a user with the role alone, in the database of a small authority."""
    with new_authority(small_settings(tmp_path, postgres_url)):
        pass
    user = f"server_{secrets.token_hex(4)}"
    names = sql.Identifier(user), sql.Identifier(SERVER_ROLE)
    with psycopg.connect(postgres_url, autocommit=True) as owner:
        owner.execute(
            sql.SQL("CREATE ROLE {} LOGIN PASSWORD 'for tests' IN ROLE {}").format(*names)
        )
    parts = urlsplit(postgres_url)
    host = parts.netloc.rpartition("@")[2]
    yield urlunsplit(parts._replace(netloc=f"{user}:for%20tests@{host}"))
    with psycopg.connect(postgres_url, autocommit=True) as owner:
        owner.execute(sql.SQL("DROP OWNED BY {}").format(names[0]))
        owner.execute(sql.SQL("DROP ROLE {}").format(names[0]))


def test_a_server_serves(
    server_url: str, postgres_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It provisions, validates, signs checkpoints and creates partitions; it prunes nothing."""
    with psycopg.connect(postgres_url) as owner:
        owner.execute(f"DROP TABLE validation_history_{today() + 3 * DAY:%Y%m%d}")
    with opened(small_settings(tmp_path, server_url)) as authority:
        database, keks = authority.database, authority.secrets.keks
        camera = new_camera(authority, "camera")
        caller = Caller("192.0.2.7")
        assert authority.validator.submit(camera.token(), caller).result(30).verdict == "PASS"
        AuditCheckpoints(database, keks).work(current_time())
        upkeep = AuditUpkeep(database, 1, keks)
        for _ in range(2):
            upkeep.work(current_time())
        with database.read() as connection:
            assert health.missing_privileges(connection) == []
            assert partitions.missing_days(connection, today().date()) == []
    assert caplog.text.count("may not delete audit rows") == 1


def test_a_server_neither_prunes_nor_coarsens(
    server_url: str, postgres_url: str, tmp_path: Path
) -> None:
    """It is refused before an act, before counters go, and before a checkpoint permits it."""
    with opened(small_settings(tmp_path, server_url)) as authority:
        database, keks = authority.database, authority.secrets.keks
        with database.write() as transaction:
            append_rows(transaction, [make_row(current_time() - 9 * DAY, 1)])
        AuditCheckpoints(database, keks).work(current_time())
        with psycopg.connect(postgres_url, autocommit=True) as owner:
            before = [owner.execute(each).fetchall() for each in EVERYTHING]
            with pytest.raises(ConfigurationError, match="may not delete audit rows"):
                prune(database, today(), lambda _: False, actor=ACTOR, keks=keks)
            with pytest.raises(ConfigurationError, match="may not change audit rows"):
                coarsen(database, today(), lambda _: False, ACTOR, keks=keks)
            assert [owner.execute(each).fetchall() for each in EVERYTHING] == before


@pytest.mark.parametrize("table", TRAIL)
def test_the_trail_cannot_be_changed(server_url: str, table: str) -> None:
    """Threat 46: whoever breaks into a server can add to the trail, and nothing else."""
    with psycopg.connect(server_url, autocommit=True) as server:
        [column] = server.execute(
            "SELECT attname FROM pg_attribute WHERE attrelid = to_regclass(%s) AND attnum = 1",
            [table],
        ).fetchone() or ("",)
        names = sql.Identifier(table), sql.Identifier(column)
        for statement in REFUSED:
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                server.execute(sql.SQL(statement).format(*names))


HIJACK = """
CREATE FUNCTION quote_ident(name) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
    IF current_user <> session_user THEN DELETE FROM administrative_acts; END IF;
    RETURN quote_ident($1::text);
END $$
"""


def test_a_function_of_the_server_gets_no_rights(server_url: str, postgres_url: str) -> None:
    """As where everybody may create in the schema, which is the default before PostgreSQL 15."""
    with (
        psycopg.connect(postgres_url, autocommit=True) as owner,
        psycopg.connect(server_url, autocommit=True) as server,
    ):
        owner.execute("GRANT CREATE ON SCHEMA public TO PUBLIC")
        server.execute(HIJACK)
        server.execute("SELECT create_audit_partition('2001-01-01')")
        assert owner.execute("SELECT count(*) FROM administrative_acts").fetchone() != (0,)


def test_a_server_may_create_nothing(server_url: str, postgres_url: str) -> None:
    """The doctor warns of it, and the next migration revokes it."""
    database = open_database(postgres_url)
    with psycopg.connect(postgres_url, autocommit=True) as owner:
        owner.execute("GRANT CREATE ON SCHEMA public TO PUBLIC")
    assert "REVOKE CREATE" in str(list(check_server(database)))
    migrate(database)
    assert "REVOKE CREATE" not in str(list(check_server(database)))
    with (
        psycopg.connect(server_url) as server,
        pytest.raises(psycopg.errors.InsufficientPrivilege),
    ):
        server.execute(HIJACK)
    database.close()


@pytest.mark.parametrize("day", ["0044-03-15 BC", "0001-01-01", "9999-12-31", "infinity"])
def test_no_partition_that_python_cannot_read(server_url: str, day: str) -> None:
    """One of them would stop the upkeep of all servers, `sma doctor` and `sma history prune`."""
    with psycopg.connect(server_url) as server, pytest.raises(psycopg.errors.DataError):
        server.execute("SELECT create_audit_partition(%s)", [day])


def test_nobody_else_creates_partitions(postgres_url: str, server_url: str) -> None:
    """The function has the owner's rights, so only the role may call it."""
    user = urlsplit(server_url).username or ""
    with psycopg.connect(postgres_url, autocommit=True) as owner:
        names = sql.Identifier(SERVER_ROLE), sql.Identifier(user)
        owner.execute(sql.SQL("REVOKE {} FROM {}").format(*names))
    with (
        psycopg.connect(server_url) as server,
        pytest.raises(psycopg.errors.InsufficientPrivilege),
    ):
        server.execute("SELECT create_audit_partition('2001-01-01')")
