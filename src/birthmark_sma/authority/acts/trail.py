"""Record an administrative act in the transaction that does it.

Called by every function of `authority` that changes the authority for an `Actor`. The act and its
record commit together or not at all. What no transaction can hold, such as the deletion of a file,
is recorded before it is done (docs/adr/0017). No caller may pass a secret: values are stored as
they are, for ever.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any, TypeAlias

from sqlalchemy import Connection, delete, insert, select

from birthmark_sma.authority.acts.actor import ActKind, Actor
from birthmark_sma.authority.audit_chain.store import chain_act
from birthmark_sma.storage.portable_sql import database_time
from birthmark_sma.storage.schema.acts import act_subjects, administrative_acts

Facts: TypeAlias = Mapping[str, Any]
"""Names and values of a state: text, numbers, booleans, times, or lists of these. None values are
left out."""

_acts = administrative_acts.c


@dataclass(frozen=True, slots=True)
class Subject:
    """A device, access key, table or CA of an act, before and after it.

    `before` is None if the act created it. `name` is None for what has no name, such as the
    authority.
    """

    name: str | None
    before: Facts | None = None
    after: Facts | None = None


def record(
    transaction: Connection,
    actor: Actor,
    kind: ActKind,
    subjects: Sequence[Subject],
    *,
    reason: str | None = None,
    more: Facts | None = None,
) -> None:
    """Record an act, at the time of the database. Call it in the transaction of the act.

    An act without a subject changed nothing, and is not recorded. `reason` is a word of up to 32
    characters; `more` has further facts about the act as a whole.
    """
    if not subjects:
        return
    one = subjects[0] if len(subjects) == 1 else Subject(None)
    details = _known({"before": _known(one.before), "after": _known(one.after), **(more or {})})
    values = {
        "acted_at": database_time(transaction),
        "act": kind.value,
        "actor": actor.name,
        "role": actor.role,
        "source": actor.source.value,
        "request_id": actor.request_id,
        "subject_kind": kind.subject_kind,
        "subject": one.name,
        "subjects": len(subjects),
        "reason": reason,
        "details": _encode(details),
    }
    act_id = transaction.execute(
        insert(administrative_acts).values(values).returning(_acts.id)
    ).scalar_one()
    rows = []
    if len(subjects) > 1:
        rows = [
            {
                "act_id": act_id,
                "subject": each.name,
                "before": None if each.before is None else _encode(_known(each.before)),
                "after": None if each.after is None else _encode(_known(each.after)),
            }
            for each in subjects
        ]
        transaction.execute(insert(act_subjects), rows)
    named = [(each["subject"], each["before"], each["after"]) for each in rows]
    chain_act(transaction, {"id": act_id, **values}, named)


def compare(before: Mapping[str, Facts], after: Mapping[str, Facts]) -> list[Subject]:
    """Return the subjects that are new, gone or different, in the order of their names."""
    return [
        Subject(name, before.get(name), after.get(name))
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name)
    ]


def forget_before(transaction: Connection, before: datetime) -> None:
    """Delete the acts from before a time. Call it in a sandbox only."""
    old = select(_acts.id).where(_acts.acted_at < before)
    transaction.execute(delete(act_subjects).where(act_subjects.c.act_id.in_(old)))
    transaction.execute(delete(administrative_acts).where(_acts.acted_at < before))


def _known(facts: Facts | None) -> Facts | None:
    return facts and {name: value for name, value in facts.items() if value is not None}


def _encode(facts: Facts | None) -> str:
    return json.dumps(facts, sort_keys=True, default=_as_text)


def _as_text(value: date) -> str:
    return value.isoformat().replace("+00:00", "Z")
