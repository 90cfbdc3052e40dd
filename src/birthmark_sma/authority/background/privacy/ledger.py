"""SQL that drops exact times and addresses of old tokens from the replay ledger.

Called by `coarsening` with the digests of the rows that it coarsens: a digest would otherwise join
such a row with the time and the caller of its token. Callers with an access key stay. It must
change nothing that is younger, because the ledger tells replays from dual submissions.
"""

from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import Connection, bindparam, delete, exists, insert, select, tuple_, update

from birthmark_sma.authority.audit_chain.batches import floor_to_hour
from birthmark_sma.protocol.replay import SeenToken
from birthmark_sma.storage.portable_sql import UtcDateTime, is_any_of
from birthmark_sma.storage.schema.validations import (
    lost_answers,
    resubmitted_tokens,
    sighted_tokens,
)

DROPPED_ADDRESS = "ip:dropped"
"""Stands for the addresses that were dropped. A caller at one of them counts as another caller if
it submits such an old token again."""

_ADDRESS = "ip:"
_DIGESTS = 500  # of one statement
_first = sighted_tokens.c
_again = resubmitted_tokens.c


def coarsen_tokens(transaction: Connection, digests: Sequence[bytes], before: datetime) -> None:
    """Coarsen the submissions of tokens that are older than a time. `digests` are sorted."""
    for start in range(0, len(digests), _DIGESTS):
        part = digests[start : start + _DIGESTS]
        _coarsen_first(transaction, part, before)
        _coarsen_repeats(transaction, part, before)
        _drop_lost_answers(transaction, part)


def _coarsen_first(transaction: Connection, digests: Sequence[bytes], before: datetime) -> None:
    rows = transaction.execute(
        select(_first.digest, _first.first_caller, _first.first_seen_at)
        .where(is_any_of(transaction, _first.digest, digests), _first.first_seen_at < before)
        .order_by(_first.digest)  # the lock order of all who change the ledger
        .with_for_update()
    )
    changes = [
        {"key": digest, "caller": _without_address(caller), "hour": floor_to_hour(time)}
        for digest, caller, time in rows
        if (_without_address(caller), floor_to_hour(time)) != (caller, time)
    ]
    if changes:
        values = {
            _first.first_caller: bindparam("caller"),
            _first.first_seen_at: bindparam("hour", type_=UtcDateTime()),
        }
        change = update(sighted_tokens).where(_first.digest == bindparam("key")).values(values)
        transaction.execute(change, changes)


def _coarsen_repeats(transaction: Connection, digests: Sequence[bytes], before: datetime) -> None:
    rows = transaction.execute(
        select(_again.digest, _again.caller, _again.times, _again.last_seen_at)
        .where(is_any_of(transaction, _again.digest, digests), _again.last_seen_at < before)
        .order_by(_again.digest, _again.caller)
        .with_for_update()
    ).all()
    # Several addresses become one, so their rows are added up.
    times: defaultdict[SeenToken, int] = defaultdict(int)
    last: dict[SeenToken, datetime] = {}
    for digest, caller, number, time in rows:
        token = SeenToken(digest, _without_address(caller))
        times[token] += number
        last[token] = max(floor_to_hour(time), last.get(token, floor_to_hour(time)))
    coarse = {(*token, times[token], last[token]) for token in times}
    if coarse == {tuple(row) for row in rows}:
        return
    key = tuple_(_again.digest, _again.caller)
    transaction.execute(
        delete(resubmitted_tokens).where(key.in_([(row.digest, row.caller) for row in rows]))
    )
    transaction.execute(
        insert(resubmitted_tokens),
        [
            {**token._asdict(), "times": times[token], "last_seen_at": last[token]}
            for token in sorted(times)
        ],
    )


def _drop_lost_answers(transaction: Connection, digests: Sequence[bytes]) -> None:
    """Delete the lost answers of addresses that have not submitted the token lately."""
    lost = lost_answers.c
    lately = exists().where(_again.digest == lost.digest, _again.caller == lost.caller)
    transaction.execute(
        delete(lost_answers).where(
            is_any_of(transaction, lost.digest, digests),
            lost.caller.startswith(_ADDRESS, autoescape=True),
            ~lately,
        )
    )


def _without_address(caller: str) -> str:
    return DROPPED_ADDRESS if caller.startswith(_ADDRESS) else caller
