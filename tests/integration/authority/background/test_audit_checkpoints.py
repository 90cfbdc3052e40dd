"""The background task signs the heads each minute, and never what somebody changed."""

import pytest

from birthmark_sma.authority.audit_chain import keys
from birthmark_sma.authority.audit_chain.verification.database_reader import DatabaseReader
from birthmark_sma.authority.audit_chain.verification.findings import Verified
from birthmark_sma.authority.audit_chain.verification.trail import verify
from birthmark_sma.authority.authority import Authority
from birthmark_sma.authority.background import audit_checkpoints
from birthmark_sma.authority.background.audit_checkpoints import AuditCheckpoints
from tests.support.authorities import execute, rows_of
from tests.support.days import current_time


def sign(authority: Authority) -> None:
    """Let the task of a server do its work."""
    AuditCheckpoints(authority.database, authority.secrets.keks).work(current_time())


def count(authority: Authority) -> int:
    """Return the number of checkpoints."""
    number: int = rows_of(authority.database, "SELECT count(*) FROM audit_checkpoints")[0][0]
    return number


def test_one_for_all_processes(authority: Authority) -> None:
    """The first run creates the key and signs; another process within the minute does not."""
    for _ in range(3):
        sign(authority)
    assert count(authority) == 1
    done = Verified()
    with authority.database.read() as connection:
        verifier = keys.find_verifier(connection)
        assert verifier is not None
        assert list(verify(DatabaseReader(connection), verifier, [], done)) == []
    assert done.acts == 1  # the creation of the authority
    assert done.checkpoints == 1


def test_what_somebody_changed_is_not_signed(
    authority: Authority, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It says so, with the command that finds out more."""
    sign(authority)
    execute(authority.database, "UPDATE audit_checkpoints SET note = replace(note, 'heads', 'had')")
    monkeypatch.setattr(audit_checkpoints, "_LEAST_AGE", -audit_checkpoints._LEAST_AGE)
    sign(authority)
    assert count(authority) == 1
    assert "sma audit verify" in caplog.text


def test_nothing_new_is_not_signed(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    """A minute without a commit needs no checkpoint."""
    monkeypatch.setattr(audit_checkpoints, "_LEAST_AGE", -audit_checkpoints._LEAST_AGE)
    for _ in range(2):
        sign(authority)
    assert count(authority) == 1
