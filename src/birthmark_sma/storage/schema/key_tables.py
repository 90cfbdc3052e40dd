"""The tables of the key tables: their keys, those that a rotation replaced, and their use."""

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    Float,
    ForeignKey,
    Integer,
    LargeBinary,
    SmallInteger,
    Table,
)

from birthmark_sma.storage.portable_sql import UtcDateTime
from birthmark_sma.storage.schema.authority import key_encryption_keys
from birthmark_sma.storage.schema.base import metadata

key_tables = Table(
    "key_tables",
    metadata,
    Column("table_id", Integer, primary_key=True, autoincrement=False),
    Column("master_key", LargeBinary, nullable=False),
    Column("kek_id", ForeignKey(key_encryption_keys.c.kek_id), nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("epoch", Integer, nullable=False, server_default="0"),
)
"""The key tables. `master_key` is wrapped under the KEK; all keys of a table derive from it.
`epoch` is the number of rotations before this master key."""

earlier_table_keys = Table(
    "earlier_table_keys",
    metadata,
    Column("table_id", Integer, primary_key=True, autoincrement=False),
    Column("epoch", Integer, nullable=False),
    Column("master_key", LargeBinary, nullable=False),
    Column("kek_id", ForeignKey(key_encryption_keys.c.kek_id), nullable=False),
    Column("rotated_at", UtcDateTime, nullable=False),
    Column("accepted_until", UtcDateTime, nullable=False),
)
"""For each rotated table whose overlap is open: the master key of the epoch before, wrapped as in
`key_tables`. The primary key allows two live keys of a table, not three. A row is deleted when its
overlap has ended."""

key_table_figures = Table(
    "key_table_figures",
    metadata,
    Column("table_id", Integer, primary_key=True, autoincrement=False),
    Column("devices", BigInteger, nullable=False, server_default="0"),
    Column("passes", BigInteger, nullable=False, server_default="0"),
    Column("fails", BigInteger, nullable=False, server_default="0"),
)
"""For each key table: the number of devices that use it, and the numbers of PASS and FAIL verdicts
on camera tokens that named it."""

key_table_counting = Table(
    "key_table_counting",
    metadata,
    Column("id", SmallInteger, CheckConstraint("id = 1", name="single"), primary_key=True),
    Column("counted_until", UtcDateTime),
    Column("devices_at", UtcDateTime),
    Column("devices_seconds", Float),
)
"""One row: the progress of counting `key_table_figures`. Audit rows up to `counted_until` are
counted, a stretch of time after another. Devices are counted all at once: `devices_at` is the start
of the last count, `devices_seconds` is how long it took."""
