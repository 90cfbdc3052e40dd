"""Chains of the audit log and of the acts, checkpoints, and the key that signs them.

`authority.initialisation.record_migration` chains the rows that there are, in the same transaction.
"""

import sqlalchemy as sa
from alembic import op

from birthmark_sma.storage.portable_sql import UtcDateTime

revision = "0016"
down_revision = "0015"

# A server creates partitions without owning the audit log: the function has its owner's rights, and
# can do nothing else with them. Its search_path has no schema in which anybody else creates a
# function: one of the server's would run with the owner's rights. Python has no times before year 1
# and after 9999. The row type of the default partition may have another order.
_CREATE_PARTITION = """
DO $migration$
BEGIN
    EXECUTE replace($function$
CREATE FUNCTION create_audit_partition(day date) RETURNS text
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $create$
DECLARE
    home CONSTANT text := THE_SCHEMA;
    begins timestamptz := day::timestamp AT TIME ZONE 'UTC';
    ends timestamptz := (day + 1)::timestamp AT TIME ZONE 'UTC';
    name text := 'validation_history_' || to_char(day, 'YYYYMMDD');
    history regclass := format('%I.validation_history', home);
    columns text := (SELECT string_agg(quote_ident(attname), ', ' ORDER BY attnum)
        FROM pg_attribute WHERE attrelid = history AND attnum > 0 AND NOT attisdropped);
BEGIN
    IF day NOT BETWEEN '0001-01-02' AND '9999-12-30' THEN
        RAISE EXCEPTION 'no audit row has such a day' USING ERRCODE = 'datetime_field_overflow';
    END IF;
    -- A plain table first: PostgreSQL refuses a new partition while the default one has its rows.
    EXECUTE format('CREATE TABLE %I.%I (LIKE %s)', home, name, history);
    -- The lock keeps others from inserting rows of this day into the default partition while they
    -- are moved. It is on the parent table: an INSERT that waited for a lock on the default
    -- partition would then violate its new constraint and fail.
    EXECUTE format('LOCK TABLE ONLY %s IN EXCLUSIVE MODE', history);
    EXECUTE format('WITH moved AS (DELETE FROM %I.validation_history_unforeseen'
        ' WHERE validated_at >= $1 AND validated_at < $2 RETURNING %s)'
        ' INSERT INTO %I.%I (%s) SELECT * FROM moved', home, columns, home, name, columns)
        USING begins, ends;
    EXECUTE format('ALTER TABLE %s ATTACH PARTITION %I.%I'
        ' FOR VALUES FROM (%L) TO (%L)', history, home, name, begins, ends);
    RETURN name;
END
$create$
    $function$, 'THE_SCHEMA', quote_literal(current_schema()));
END
$migration$
"""


def upgrade() -> None:
    op.add_column("validation_history", sa.Column("time_and_ip_commitment", sa.LargeBinary))
    op.create_table(
        "audit_batches",
        sa.Column("writer", sa.String(32), primary_key=True),
        sa.Column("sequence", sa.BigInteger, primary_key=True),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("hour", UtcDateTime, nullable=False),
        sa.Column("first_id", sa.BigInteger, nullable=False),
        sa.Column("rows", sa.Integer, nullable=False),
        sa.Column("root", sa.LargeBinary, nullable=False),
        sa.Column("head", sa.LargeBinary, nullable=False),
        sa.Column("salt", sa.LargeBinary),
        sa.Column("leaves", sa.LargeBinary),
    )
    op.create_table(
        "audit_checkpoints",
        sa.Column("number", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("made_at", UtcDateTime, nullable=False),
        sa.Column("lists_all", sa.Boolean, nullable=False),
        sa.Column("pruned_before", UtcDateTime),
        sa.Column("coarse_before", UtcDateTime),
        sa.Column("note", sa.Text, nullable=False),
    )
    op.create_table(
        "audit_keys",
        sa.Column("key_id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("public_key", sa.LargeBinary, nullable=False),
        sa.Column("wrapped_private_key", sa.LargeBinary, nullable=False),
        sa.Column(
            "kek_id", sa.Integer, sa.ForeignKey("key_encryption_keys.kek_id"), nullable=False
        ),
        sa.Column("created_at", UtcDateTime, nullable=False),
    )
    if op.get_context().dialect.name == "postgresql":
        op.create_index(
            "audit_batches_hour_idx",
            "audit_batches",
            ["hour"],
            postgresql_using="brin",
            postgresql_with={"autosummarize": "on"},
        )
        # Hashes cannot be compressed: PostgreSQL must not try.
        op.execute("ALTER TABLE audit_batches ALTER COLUMN leaves SET STORAGE EXTERNAL")
        # One value of the sequence reserves so many consecutive ids for a writer.
        op.execute("ALTER SEQUENCE validation_history_id_seq INCREMENT BY 100000")
        op.execute(_CREATE_PARTITION)
        op.execute("REVOKE ALL ON FUNCTION create_audit_partition(date) FROM PUBLIC")
