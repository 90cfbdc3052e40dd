"""The tables of administrative acts, and of their subjects."""

from sqlalchemy import BigInteger, Column, Index, Integer, String, Table, Text

from birthmark_sma.storage.portable_sql import BigId, UtcDateTime
from birthmark_sma.storage.schema.base import metadata

administrative_acts = Table(
    "administrative_acts",
    metadata,
    Column("id", BigId, primary_key=True),
    Column("acted_at", UtcDateTime, nullable=False),
    Column("act", String(32), nullable=False),
    Column("actor", String(64), nullable=False),
    Column("role", String(16)),
    Column("source", String(16), nullable=False),
    Column("request_id", String(128)),
    Column("subject_kind", String(16), nullable=False),
    Column("subject", String(64)),
    Column("subjects", Integer, nullable=False),
    Column("reason", String(32)),
    Column("details", Text, nullable=False),
)
"""The trail of administrative acts: one row for each act, written in the transaction of the act.
`act` is such as `device.suspend`; `subject_kind` is the part before the point. `subjects` is the
number of devices, keys, tables or CAs that the act changed. `subject` names it if there is one;
NULL if there are several, whose names are in `act_subjects`, or if the subject has no name.
`details` is a JSON object: `before` and `after` of the one subject, and more about the act. It
never holds a secret."""
Index("administrative_acts_acted_at_idx", administrative_acts.c.acted_at)
Index("administrative_acts_act_idx", administrative_acts.c.act, administrative_acts.c.id)
Index("administrative_acts_actor_idx", administrative_acts.c.actor, administrative_acts.c.id)
Index("administrative_acts_subject_idx", administrative_acts.c.subject, administrative_acts.c.id)

act_subjects = Table(
    "act_subjects",
    metadata,
    Column("act_id", BigInteger, primary_key=True, autoincrement=False),
    Column("subject", String(64), primary_key=True),
    Column("before", Text),
    Column("after", Text),
)
"""The subjects of acts that have several. `before` and `after` are JSON objects; NULL if the
subject did not exist, or has no state."""
Index("act_subjects_subject_idx", act_subjects.c.subject, act_subjects.c.act_id)
