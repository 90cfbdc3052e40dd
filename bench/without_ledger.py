"""`python -m bench.without_ledger serve ...`: the real server, but without a replay ledger.

It exists only to measure the cost of the ledger (`bench/parts/replay.py`). No setting of the server
does this.
"""

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import Connection

from birthmark_sma.authority import authority
from birthmark_sma.authority.validation.records import Attempt, Validation
from birthmark_sma.authority.validation.service import Validator
from birthmark_sma.cli.main import run


class _Forgetful(Validator):
    """A validator that treats every camera token as new."""

    # Overrides Validator's private method, which reads and writes the ledger in the batch's
    # transaction. Everything else stays the same, so the difference is the ledger's cost.
    def _note_tokens(
        self,
        _transaction: Connection,
        _attempts: Sequence[Attempt],
        judged: Sequence[Validation],
        _now: datetime,
    ) -> list[Validation]:
        return list(judged)


if __name__ == "__main__":
    # `authority` imported the class by name, so the name in that module is replaced.
    setattr(authority, Validator.__name__, _Forgetful)
    run()
