"""When a transaction is run again, and when not."""

import time

import pytest

from birthmark_sma.errors import DatabaseFault, DatabaseUnavailableError
from birthmark_sma.storage.outages import retries
from birthmark_sma.storage.outages.retries import retry


def error_of(
    fault: DatabaseFault = DatabaseFault.BUSY,
    *,
    try_again: bool = False,
    may_have_committed: bool = False,
) -> DatabaseUnavailableError:
    """An error as `storage.engine` raises it."""
    error = DatabaseUnavailableError("told", "advice", fault)
    error.try_again, error.may_have_committed = try_again, may_have_committed
    return error


class Transactions:
    """Fails with these errors, one after the other, and then succeeds."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.attempts = 0

    def __call__(self) -> str:
        self.attempts += 1
        if self.errors:
            raise self.errors.pop(0)
        return "done"


CONFLICT = error_of(try_again=True)
LOST = error_of(DatabaseFault.AWAY)
READ_ONLY = error_of(DatabaseFault.READ_ONLY)


@pytest.mark.parametrize(
    "errors",
    [
        [],
        [CONFLICT],
        [CONFLICT] * 6,
        [LOST],
        [READ_ONLY],
        [CONFLICT, LOST, CONFLICT],
    ],
)
def test_what_is_tried_again(errors: list[Exception]) -> None:
    """Threat 48: conflicts as often as it takes; a lost connection once."""
    transactions = Transactions(*errors)
    assert retry(transactions) == "done"
    assert transactions.attempts == len(errors) + 1


@pytest.mark.parametrize(
    "errors",
    [
        [LOST, LOST],
        [LOST, CONFLICT, READ_ONLY],
        [error_of(DatabaseFault.FULL)],
        [error_of(DatabaseFault.LOCKED)],
        [error_of(DatabaseFault.BUSY)],
        [error_of(DatabaseFault.AWAY, may_have_committed=True)],
        [ValueError()],
    ],
)
def test_what_is_not(errors: list[Exception]) -> None:
    """What a second attempt cannot mend, and a commit that may have happened."""
    transactions = Transactions(*errors)
    with pytest.raises(type(errors[-1])) as raised:
        retry(transactions)
    assert raised.value is errors[-1]
    assert transactions.attempts == len(errors)


def test_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Within the time that a caller waits. The pauses grow, so the attempts are few."""
    now = 0.0

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    monkeypatch.setattr(retries, "monotonic", lambda: now)
    monkeypatch.setattr(time, "sleep", sleep)
    transactions = Transactions(*[CONFLICT] * 1_000)
    with pytest.raises(DatabaseUnavailableError):
        retry(transactions)
    assert 7.0 < now <= 8.0
    assert 15 <= transactions.attempts <= 50


def test_a_copy_knows_the_same() -> None:
    """Each caller of a batch gets a copy of its error."""
    copy = error_of(try_again=True, may_have_committed=True).again()
    assert copy.try_again
    assert copy.may_have_committed
