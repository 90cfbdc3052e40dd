"""The statements that store a mark."""

from birthmark_sma.storage.outages.commit_marks import PREPARE, CommitMark

MARK = CommitMark("0123456789abcdef0123456789abcdef", 7)


def test_a_mark_as_plain_sql() -> None:
    """It replaces the writer's row."""
    statement = MARK.statement(prepared=False).decode()
    assert f"VALUES ('{MARK.writer}', 7, now()) ON CONFLICT (writer) DO UPDATE" in statement


def test_a_mark_by_a_prepared_statement() -> None:
    """Both are the same statement, with values in place of the parameters."""
    name = PREPARE.split()[1]
    assert MARK.statement(prepared=True) == b"EXECUTE %s('%s', 7)" % (name, MARK.writer.encode())
    prepared = PREPARE.partition(b" AS ")[2]
    plain = prepared.replace(b"$1", f"'{MARK.writer}'".encode()).replace(b"$2", b"7")
    assert plain == MARK.statement(prepared=False)
