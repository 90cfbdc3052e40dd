"""`python -m bench.without_ledger serve ...`: the server as it is, but it keeps no replay ledger.

No setting does this: it is only here, to see what the ledger costs.
"""

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import Connection

from birthmark_sma.authority import authority
from birthmark_sma.authority.validation.service import Attempt, Validation, Validator
from birthmark_sma.cli.main import run


class _Forgetful(Validator):
    """Takes every camera token for a new one."""

    def _note_sights(
        self,
        _transaction: Connection,
        _attempts: Sequence[Attempt],
        judged: Sequence[Validation],
        _now: datetime,
    ) -> list[Validation]:
        return list(judged)


if __name__ == "__main__":
    setattr(authority, Validator.__name__, _Forgetful)  # what the settings cannot do
    run()
