"""The tables of validations: the audit log, the replay ledger and the counters."""

from sqlalchemy import BigInteger, Column, Index, Integer, LargeBinary, SmallInteger, String, Table

from birthmark_sma.storage.portable_sql import BigId, UtcDateTime
from birthmark_sma.storage.schema.base import metadata

validation_history = Table(
    "validation_history",
    metadata,
    Column("id", BigId, primary_key=True),
    Column("encrypted_nuc_hash", LargeBinary, nullable=False),
    Column("table_id", Integer, nullable=False),
    Column("key_index", Integer, nullable=False),
    Column("validation_result", String(4), nullable=False),
    Column("reason", String(24), nullable=False),
    Column("device_serial", String(64)),
    Column("validated_at", UtcDateTime, nullable=False),
    Column("request_ip", String(45)),
    Column("caller", String(16)),
    Column("repeat", String(16)),
    Column("request_id", String(128)),
    Column("batch_position", SmallInteger),
    Column("token_digest", LargeBinary),
    Column("waited_us", Integer),
    Column("time_and_ip_commitment", LargeBinary),
)
"""The audit log. It does not store the nonce, so a stolen copy contains no token to replay.

`request_id` and the columns after it are NULL in rows from before they existed (docs/adr/0018).
`time_and_ip_commitment` takes the place of a time and an address that were dropped (docs/adr/0019).
`audit_batches` covers each row by its id.

On PostgreSQL it is partitioned by `validated_at`, one partition for each UTC day
(`storage.partitions`), and has no primary key: nothing looks up an `id`, and the index would slow
down every validation.
"""
Index("validation_history_validated_at_idx", validation_history.c.validated_at)
Index(
    "validation_history_request_id_idx",
    validation_history.c.request_id,
    postgresql_using="brin",
    postgresql_ops={
        "request_id": "text_bloom_ops(n_distinct_per_range=2500, false_positive_rate=0.01)"
    },
    postgresql_with={"pages_per_range": 64, "autosummarize": "on"},
).ddl_if(dialect="postgresql")

validation_counters = Table(
    "validation_counters",
    metadata,
    Column("minute", UtcDateTime, primary_key=True),
    Column("reason", String(24), primary_key=True),
    Column("writer", SmallInteger, primary_key=True),
    Column("times", BigInteger, nullable=False),
)
"""The number of verdicts by minute and reason. `writer` is a random number of each process: each
has rows of its own, so processes do not wait for each other's row locks. Readers add them up."""

running_totals = Table(
    "running_totals",
    metadata,
    Column("counted", String(8), primary_key=True),
    Column("name", String(24), primary_key=True),
    Column("writer", SmallInteger, primary_key=True),
    Column("times", BigInteger, nullable=False),
)
"""The total number of each reason (`counted` is `verdict`) and of each kind of repeat (`counted` is
`repeat`). Retention does not reduce these totals, so monitoring sees counters that only rise."""

sighted_tokens = Table(
    "sighted_tokens",
    metadata,
    Column("digest", LargeBinary, primary_key=True),
    Column("first_caller", String(64), nullable=False),
    Column("first_seen_at", UtcDateTime, nullable=False),
    Column("passed_under", SmallInteger, nullable=False, server_default="0"),
)
"""The replay ledger (docs/adr/0009): a digest of each validated camera token, its first caller.

`passed_under` is the number of the key derivation under which the token passed
(`authority.validation.replay_ledger`), or 0 if it did not. It is in the row of the normative
digest, whichever derivation that was.

No B-tree index finds old rows, because each token would have to be added to it. PostgreSQL uses a
BRIN index (a summary of each range of pages), SQLite the order in which rows were written.
"""
Index(
    "sighted_tokens_first_seen_at_idx",
    sighted_tokens.c.first_seen_at,
    postgresql_using="brin",
    postgresql_with={"autosummarize": "on"},
).ddl_if(dialect="postgresql")

resubmitted_tokens = Table(
    "resubmitted_tokens",
    metadata,
    Column("digest", LargeBinary, primary_key=True),
    Column("caller", String(64), primary_key=True),
    Column("times", Integer, nullable=False),
    Column("last_seen_at", UtcDateTime, nullable=False),
)
"""Tokens that were submitted again: by which caller, and how often after the first time."""

lost_answers = Table(
    "lost_answers",
    metadata,
    Column("digest", LargeBinary, primary_key=True),
    Column("caller", String(64), primary_key=True),
)
"""Tokens whose verdict did not reach this caller. The caller may get the verdict once more."""

repeat_counters = Table(
    "repeat_counters",
    metadata,
    Column("minute", UtcDateTime, primary_key=True),
    Column("repeat", String(16), primary_key=True),
    Column("writer", SmallInteger, primary_key=True),
    Column("times", BigInteger, nullable=False),
)
"""The number of repeated tokens by minute and kind. `writer` is as in `validation_counters`."""

writer_commits = Table(
    "writer_commits",
    metadata,
    Column("writer", String(32), primary_key=True),
    Column("sequence", BigInteger, nullable=False),
    Column("committed_at", UtcDateTime, nullable=False),
)
"""The last committed transaction of each writer (`outages.commit_marks`). Empty on SQLite."""
