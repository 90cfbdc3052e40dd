"""Read validations with everything that the database knows about them.

`sma validations show` and the dashboard's page of a validation use it, because both must tell the
same story: the audit row, its reason in words, and what the replay ledger knows of the token.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import Connection, select

from birthmark_sma.authority.access.store import find_keys
from birthmark_sma.authority.validation import audit_search
from birthmark_sma.authority.validation.audit_search import AuditEntry, AuditFilter, Cursor
from birthmark_sma.authority.validation.explanations import EXPLANATIONS, REPEATS, Explanation
from birthmark_sma.errors import UnknownValidationError
from birthmark_sma.protocol.replay import Repeat
from birthmark_sma.protocol.verdict import Reason
from birthmark_sma.storage.engine import Database
from birthmark_sma.storage.portable_sql import is_any_of
from birthmark_sma.storage.schema.validations import resubmitted_tokens, sighted_tokens
from birthmark_sma.storage.schema.validations import validation_history as history

MOST_ROWS = 10_000
"""The number of rows of a request that `find_request` returns."""

_DIGESTS = 500  # digests of one statement


class Resubmission(NamedTuple):
    """The submissions of a token after its first one, by one caller."""

    caller: str
    """As `Caller.identity` names it."""
    times: int
    last_seen_at: datetime


class TokenStory(NamedTuple):
    """The entry of a token in the replay ledger."""

    first_caller: str
    """As `Caller.identity` names it."""
    first_seen_at: datetime
    resubmissions: Sequence[Resubmission]


class ValidationDetails(NamedTuple):
    """An audit row, explained."""

    entry: AuditEntry
    reason: Explanation
    repeat: Explanation | None
    story: TokenStory | None
    """None for rows from before token digests were recorded, and for tokens that were pruned."""


def find_request(database: Database, request_id: str) -> list[ValidationDetails]:
    """Return the validations of all requests with this id: newest request first, in body order.

    At most MOST_ROWS, the newest. This searches the whole log, which takes its time.

    Raises UnknownValidationError if there is none.
    """
    wanted = AuditFilter(request_id=request_id)
    found = audit_search.search_whole(database, wanted, limit=MOST_ROWS)
    if not found.rows:
        raise UnknownValidationError(
            f"No validation has the request id {request_id}. A row is there before the answer"
            " leaves. If the caller has no answer yet, try again in a minute. If it has one, the"
            " request was refused before its token was judged: look for the id in the server's log"
        )
    # The rows of one transaction have the same time.
    rows = sorted(found.rows, key=lambda row: row.batch_position or 0)
    rows.sort(key=lambda row: row.validated_at, reverse=True)
    with database.read() as connection:
        return explain(connection, rows)


def find_validation(connection: Connection, place: Cursor) -> ValidationDetails:
    """Return the validation at a place in the audit log. Raises UnknownValidationError."""
    row = history.c
    found = connection.execute(
        select(*audit_search.COLUMNS).where(
            row.validated_at == place.validated_at, row.id == place.id
        )
    ).first()  # there is more than one if somebody has doubled it
    if found is None:
        raise UnknownValidationError(
            "There is no such validation. Retention may have deleted it, or its exact time was"
            " dropped: search for it again"
        )
    return explain(connection, [AuditEntry(*found)])[0]


def explain(connection: Connection, entries: Sequence[AuditEntry]) -> list[ValidationDetails]:
    """Return audit rows with their explanations and the story of each token, in order."""
    digests = {each.token_digest for each in entries if each.token_digest is not None}
    stories = _read_stories(connection, sorted(digests))
    return [
        ValidationDetails(
            each,
            EXPLANATIONS[Reason(each.reason)],
            None if each.repeat is None else REPEATS[Repeat(each.repeat)],
            None if each.token_digest is None else stories.get(each.token_digest),
        )
        for each in entries
    ]


def name_callers(connection: Connection, found: Sequence[ValidationDetails]) -> dict[str, str]:
    """Return the names of the access keys in these validations, by `Caller.identity`."""
    identities = {f"key:{each.entry.caller}" for each in found if each.entry.caller is not None}
    for each in found:
        if each.story is not None:
            identities.add(each.story.first_caller)
            identities |= {again.caller for again in each.story.resubmissions}
    names = {}
    for identity in sorted(identities):
        kind, _, key_id = identity.partition(":")
        if kind == "key":
            named = {key.key_id: key.name for key in find_keys(connection, key_id)}
            if key_id in named:
                names[identity] = named[key_id]
    return names


def _read_stories(connection: Connection, digests: Sequence[bytes]) -> Mapping[bytes, TokenStory]:
    """Return the stories of the tokens that the ledger has, by digest."""
    again: defaultdict[bytes, list[Resubmission]] = defaultdict(list)
    stories: dict[bytes, TokenStory] = {}
    first, more = sighted_tokens.c, resubmitted_tokens.c
    for start in range(0, len(digests), _DIGESTS):
        part = digests[start : start + _DIGESTS]
        repeats = select(more.digest, more.caller, more.times, more.last_seen_at).where(
            is_any_of(connection, more.digest, part)
        )
        for digest, *repeat in connection.execute(repeats.order_by(more.last_seen_at)):
            again[digest].append(Resubmission(*repeat))
        sights = select(first.digest, first.first_caller, first.first_seen_at).where(
            is_any_of(connection, first.digest, part)
        )
        for digest, caller, seen_at in connection.execute(sights):
            stories[digest] = TokenStory(caller, seen_at, again[digest])
    return stories
