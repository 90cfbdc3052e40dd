"""The role of PostgreSQL for servers: all that `sma serve` needs, and no change of the trail.

`storage.migration` calls `grant_to_servers` after each migration, so that the role also gets what
is new, and a restore calls it, because a backup has no privileges. On the tables of the trail it
may only SELECT and INSERT: whoever breaks into a server cannot change what was recorded
(docs/adr/0019). It has no password; operators grant it to a user.
"""

from sqlalchemy import Connection, select, text
from sqlalchemy.sql.functions import func

from birthmark_sma.errors import ConfigurationError
from birthmark_sma.storage.engine import Database
from birthmark_sma.storage.schema.acts import act_subjects, administrative_acts
from birthmark_sma.storage.schema.audit_chain import audit_batches, audit_checkpoints
from birthmark_sma.storage.schema.validations import validation_history

SERVER_ROLE = "birthmark_sma_server"
TRAIL = tuple(
    table.name
    for table in (
        validation_history,
        administrative_acts,
        act_subjects,
        audit_batches,
        audit_checkpoints,
    )
)
"""The tables to which servers only add."""

_OWNER_NEEDED = (
    "The database's user may not {} audit rows, so nothing was changed. Type the same command with"
    " the owner of the database in DATABASE_URL"
)

# Roles belong to the whole cluster, so another database may be creating it at this moment.
_GRANT = text("""
DO $grant$
DECLARE
    name text;
    trail text[] := ARRAY['validation_history', 'administrative_acts', 'act_subjects',
        'audit_batches', 'audit_checkpoints'];
BEGIN
    -- It has its owner's rights.
    REVOKE ALL ON FUNCTION create_audit_partition(date) FROM PUBLIC;
    IF to_regrole('birthmark_sma_server') IS NULL THEN
        BEGIN
            CREATE ROLE birthmark_sma_server NOLOGIN;
        EXCEPTION WHEN insufficient_privilege OR duplicate_object OR unique_violation THEN
            NULL;
        END;
    END IF;
    IF to_regrole('birthmark_sma_server') IS NULL THEN
        RETURN;
    END IF;
    -- A server's own functions could be called by the owner's commands, with the owner's rights.
    IF pg_has_role((SELECT nspowner FROM pg_namespace WHERE nspname = current_schema()), 'USAGE')
    THEN
        -- The owner of the tables may have had it from PUBLIC.
        EXECUTE format('GRANT CREATE ON SCHEMA %I TO %I', current_schema(), (SELECT pg_get_userbyid(
            relowner) FROM pg_class WHERE oid = 'validation_history'::regclass));
        EXECUTE format('REVOKE CREATE ON SCHEMA %I FROM PUBLIC, birthmark_sma_server',
            current_schema());
    END IF;
    EXECUTE format('GRANT USAGE ON SCHEMA %I TO birthmark_sma_server', current_schema());
    EXECUTE format('GRANT USAGE, SELECT ON ALL SEQUENCES IN SCHEMA %I TO birthmark_sma_server',
        current_schema());
    FOR name IN SELECT relname FROM pg_class WHERE relkind IN ('r', 'p') AND NOT relispartition
        AND relnamespace = to_regnamespace(current_schema())
    LOOP
        IF name = ANY(trail) THEN
            EXECUTE format('REVOKE ALL ON %I FROM birthmark_sma_server', name);
            EXECUTE format('GRANT SELECT, INSERT ON %I TO birthmark_sma_server', name);
        ELSE
            EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON %I TO birthmark_sma_server',
                name);
        END IF;
    END LOOP;
    GRANT SELECT ON validation_history_unforeseen TO birthmark_sma_server;
    GRANT EXECUTE ON FUNCTION create_audit_partition(date) TO birthmark_sma_server;
END
$grant$
""")


def grant_to_servers(transaction: Connection) -> None:
    """Create the role if this user may, and grant it what servers need. SQLite has no roles.

    Without the right to create roles (CREATEROLE) and without the role, nothing is granted.
    """
    if transaction.dialect.name == "postgresql":
        transaction.execute(_GRANT)


def may_delete_trail(connection: Connection) -> bool:
    """Return whether this user may delete audit rows. On SQLite everybody may."""
    return _may(connection, (validation_history.name, "DELETE"))


def may_change_trail(connection: Connection) -> bool:
    """Return whether this user may change audit rows and batches. On SQLite everybody may."""
    return _may(connection, (validation_history.name, "UPDATE"), (audit_batches.name, "UPDATE"))


def check_may_delete_trail(database: Database) -> None:
    """Raise ConfigurationError if this user may not delete audit rows."""
    with database.read() as connection:
        if not may_delete_trail(connection):
            raise ConfigurationError(_OWNER_NEEDED.format("delete"))


def check_may_change_trail(database: Database) -> None:
    """Raise ConfigurationError if this user may not change audit rows and batches."""
    with database.read() as connection:
        if not may_change_trail(connection):
            raise ConfigurationError(_OWNER_NEEDED.format("change"))


def may_servers_create(connection: Connection) -> bool:
    """Return whether a server with the role may create functions in the schema.

    The owner's commands could call them, so that a server gets the owner's rights.
    `grant_to_servers` revokes this, but only an owner of the schema can.
    """
    held = text(
        "SELECT has_schema_privilege(oid, current_schema(), 'CREATE') FROM pg_roles"
        " WHERE rolname = :role"
    )
    return bool(connection.execute(held, {"role": SERVER_ROLE}).scalar())


def _may(connection: Connection, *privileges: tuple[str, str]) -> bool:
    if connection.dialect.name != "postgresql":
        return True
    held = select(*(func.has_table_privilege(table, kind) for table, kind in privileges))
    return all(connection.execute(held).one())
