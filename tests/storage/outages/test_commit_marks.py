"""The statements that store a mark."""

from birthmark_sma.storage.outages.commit_marks import CommitMark, Timeouts

MARK = CommitMark("0123456789abcdef0123456789abcdef", 7)


def test_a_mark() -> None:
    """It replaces the writer's row."""
    text, parameters = MARK.statement(None)
    assert "VALUES ($1::text, $2::bigint, now()) ON CONFLICT (writer) DO UPDATE" in text
    assert list(parameters) == [MARK.writer.encode(), bytes([0, 0, 0, 0, 0, 0, 0, 7])]


def test_a_mark_with_timeouts() -> None:
    """The same statement sets them for the rest of the transaction."""
    text, parameters = MARK.statement(Timeouts(statement=5400, lock=4800))
    plain = MARK.statement(None)
    assert text.startswith(plain.text)
    assert "set_config('idle_in_transaction_session_timeout', $3::text, true)" in text
    assert list(parameters) == [*plain.parameters, b"5400", b"4800"]
