"""The chain of a writer goes on from what is durable, whatever became of its transactions."""

from datetime import UTC, datetime

from birthmark_sma.authority.audit_chain.batches import START, compute_head
from birthmark_sma.authority.audit_chain.writer_chain import WriterChain
from birthmark_sma.authority.validation.records import AuditRow
from birthmark_sma.storage.outages.commit_marks import CommitMark

NOW = datetime(2026, 11, 30, 12, 34, tzinfo=UTC)
ROWS = [AuditRow(bytes(48), 1, 1, "PASS", "genuine", "a", NOW, None)]


def test_a_batch_follows_the_one_before() -> None:
    """Also if a transaction in between had no rows, so that its number is missing."""
    chain = WriterChain()
    first, second = (chain.extend(CommitMark("w", number), ROWS, 1) for number in (1, 3))
    assert (first.sequence, second.sequence) == (1, 2)
    assert first.head == compute_head(first, START.head)
    assert second.head == compute_head(second, first.head)
    assert first.hour == NOW.replace(minute=0)


def test_a_transaction_that_runs_again() -> None:
    """The number is the same, so the batch of the first try is not in the chain."""
    chain = WriterChain()
    first = chain.extend(CommitMark("w", 1), ROWS, 1)
    lost, again = (chain.extend(CommitMark("w", 2), ROWS, 2) for _ in range(2))
    assert lost.sequence == again.sequence == 2
    assert again.head == compute_head(again, first.head)


def test_an_unknown_end_begins_another_chain() -> None:
    """The writer goes on under another name: either chain is whole, whatever the end was."""
    chain = WriterChain()
    chain.extend(CommitMark("w", 1), ROWS, 1)
    after = chain.extend(CommitMark("v", 1), ROWS, 2)
    assert (after.writer, after.sequence) == ("v", 1)
    assert after.head == compute_head(after, START.head)


def test_without_a_mark() -> None:
    """Each batch is a chain of its own."""
    chain = WriterChain()
    batches = [chain.extend(None, ROWS, number) for number in (1, 2)]
    assert [each.sequence for each in batches] == [1, 1]
    assert batches[0].writer != batches[1].writer
