"""The replay ledger: which camera tokens were seen before, and by which callers.

`validation.service` calls this in the transaction of the verdicts, and the store runs the
statements (`store.ValidationStore`). `background.retention` deletes old tokens. docs/adr/0009
explains the design.

* A new token costs one row and one statement. Only repeats are read and counted, in further
  statements.
* Lock order: each statement locks rows in the order of their digests. A batch that is judged in
  several turns runs the statements several times, so a deadlock between two processes remains
  possible. `storage.group_commit` then tries the batch again.
* A token passes under one key derivation only. Its row, under the normative digest, stores which
  one. A token that was submitted under another derivation only has such a row as well, so that the
  primary key decides which of two processes was first.

The statements must never depend on a token's verdict.
"""

from collections import Counter
from collections.abc import Mapping, Sequence, Set
from datetime import datetime
from time import perf_counter_ns
from typing import Any

from sqlalchemy import Connection, bindparam, delete, tuple_, update

from birthmark_sma.authority.validation.records import Attempt, LedgerEntry, Validation
from birthmark_sma.authority.validation.store import ValidationStore
from birthmark_sma.protocol.replay import Repeat, SeenToken, classify, without_first_sights
from birthmark_sma.storage.portable_sql import insert_or_skip
from birthmark_sma.storage.schema.validations import (
    lost_answers,
    resubmitted_tokens,
    sighted_tokens,
)

_NOBODY = ""
_DOUBTFUL_NANOSECONDS = 1_000_000_000
"""One second. A transaction that takes longer may have waited for the lock of another process that
judged the same token. That process may not have recorded yet that its answer was lost, so the
repeat is in doubt (docs/adr/0009)."""


def note(
    store: ValidationStore,
    transaction: Connection,
    seen: Sequence[SeenToken],
    now: datetime,
    passes: Mapping[bytes, int] | None = None,
) -> tuple[list[Repeat | None], Mapping[bytes, int]]:
    """Record the tokens and their callers; return the repeats and the derivations that passed.

    `passes` maps the normative digest of each token to the number of the key derivation under which
    it passes now, or 0. The first result has an entry for each seen token, in order: None for the
    first time, or the kind of repeat. The second result maps each digest in `passes` to the
    derivation under which it passed first, which never changes.
    """
    passes = passes or {}
    entries: dict[bytes, LedgerEntry] = {}
    for digest, caller in seen:
        if digest not in entries:
            entries[digest] = LedgerEntry(caller, passes.get(digest, 0))
    distinct = len(entries)
    for digest, number in passes.items():
        if digest not in entries:
            entries[digest] = LedgerEntry(_NOBODY, number)
    added = store.add_tokens(transaction, entries, now)
    # Fast path: every row is new, and no token occurs twice in the batch.
    if len(added) == len(entries) and distinct == len(seen):
        return [None] * len(seen), passes
    known = {digest: entries[digest] for digest in added}
    first_times = set(added)
    if len(added) < len(entries):
        known |= _complete_existing(store, transaction, entries, first_times)
    repeats = without_first_sights(seen, first_times)
    times = Counter(each for each in repeats if each is not None)
    counted = store.count_repeats(transaction, times, now) if times else {}
    brought_before = {
        each
        for each, number in counted.items()
        # Counted more often than in this batch: this caller repeated the token before.
        if number > times[each]
        or (each.digest in known and known[each.digest].first_caller == each.caller)
    }
    # A row may be missing in `known` if retention deleted it just now.
    passed = {digest: known.get(digest, entries[digest]).passed_under for digest in passes}
    return classify(repeats, brought_before), passed


def _complete_existing(
    store: ValidationStore,
    transaction: Connection,
    brought: Mapping[bytes, LedgerEntry],
    first_times: set[bytes],
) -> dict[bytes, LedgerEntry]:
    """Read the rows that exist, and complete those without a first caller or a derivation.

    `first_times` holds the digests that were just added. Those that get their first caller here are
    added to it. Incomplete rows are read again under a row lock, because another process may
    complete them at the same time. A derivation is never replaced.
    """
    existing = sorted(brought.keys() - first_times)
    known = store.read_tokens(transaction, existing)
    lacking = [each for each, entry in known.items() if _merge(entry, brought[each]) != entry]
    if not lacking:
        return known
    known |= store.read_tokens(transaction, sorted(lacking), lock=True)
    complete = {digest: _merge(known[digest], brought[digest]) for digest in sorted(lacking)}
    first_times |= {
        digest
        for digest, entry in complete.items()
        if known[digest].first_caller == _NOBODY != entry.first_caller
    }
    change = update(sighted_tokens).where(sighted_tokens.c.digest == bindparam("key"))
    rows = [{"key": digest, **entry._asdict()} for digest, entry in complete.items()]
    transaction.execute(change, rows)
    return known | complete


def _merge(entry: LedgerEntry, brought: LedgerEntry) -> LedgerEntry:
    return LedgerEntry(
        entry.first_caller or brought.first_caller, entry.passed_under or brought.passed_under
    )


def forget(
    store: ValidationStore, transaction: Connection, row_ids: Sequence[Any], before: datetime
) -> int:
    """Delete the tokens that `find_old_tokens` found, with their repeats; return their number."""
    digests = store.delete_tokens(transaction, row_ids, before)
    for table in (resubmitted_tokens, lost_answers):
        transaction.execute(delete(table).where(table.c.digest.in_(digests)))
    return len(digests)


# --- answers that did not reach their callers


def record_lost_answers(
    transaction: Connection, lost: Sequence[tuple[Attempt, Validation]]
) -> None:
    """Record the lost answers, so that each caller can get its verdict once more.

    A replay whose verdict was withheld has no answer to lose.
    """
    note_lost_answers(
        transaction,
        {
            make_seen_token(attempt, validation)
            for attempt, validation in lost
            if validation.repeat is not Repeat.REPLAYED or validation.answer_was_lost
        },
    )


def note_lost_answers(transaction: Connection, seen: Set[SeenToken]) -> None:
    """Record the tokens and callers whose verdict did not reach the caller. Idempotent."""
    if seen:
        rows = [each._asdict() for each in sorted(seen)]
        transaction.execute(insert_or_skip(transaction, lost_answers), rows)


def recall_lost_answers(
    transaction: Connection,
    attempts: Sequence[Attempt],
    validations: list[Validation],
    began: int,
) -> list[Validation]:
    """Mark the replays whose caller did not get the earlier verdict; return all validations.

    Each lost answer is marked once, and then deleted. The other replays are marked as in doubt if
    the transaction, which began at `began` (of `perf_counter_ns`), has taken longer than a second.
    """
    replays = {
        at: make_seen_token(attempts[at], validation)
        for at, validation in enumerate(validations)
        if validation.repeat is Repeat.REPLAYED
    }
    if not replays:
        return validations
    lost = take_lost_answers(transaction, set(replays.values()))
    is_slow = perf_counter_ns() - began > _DOUBTFUL_NANOSECONDS
    for at, seen in replays.items():
        was_lost = seen in lost
        lost.discard(seen)
        validations[at] = validations[at]._replace(
            answer_was_lost=was_lost, in_doubt=is_slow and not was_lost
        )
    return validations


def make_seen_token(attempt: Attempt, validation: Validation) -> SeenToken:
    """Return the token of an attempt, as the ledger knows it."""
    return SeenToken(validation.digest, attempt.caller.identity)


def take_lost_answers(transaction: Connection, seen: Set[SeenToken]) -> set[SeenToken]:
    """Delete the lost answers of these tokens and callers, and return those that were deleted.

    Of two processes that take the same one, only one gets it.
    """
    pair = tuple_(lost_answers.c.digest, lost_answers.c.caller)
    taking = (
        delete(lost_answers)
        .where(pair.in_([tuple(each) for each in sorted(seen)]))
        .returning(lost_answers.c.digest, lost_answers.c.caller)
    )
    return {SeenToken(*row) for row in transaction.execute(taking)}
