"""`python -m bench.without_ledger serve ...`: the server as it is, but it keeps no replay ledger.

No setting does this: it is only here, to see what the ledger costs.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime

from sqlalchemy import Connection

from birthmark_sma.authority import authority
from birthmark_sma.authority.validation import Attempt, Validator
from birthmark_sma.cli.main import run
from birthmark_sma.protocol.repeat import Repeat
from birthmark_sma.storage.standings import DeviceStanding, find_standings


class _Forgetful(Validator):
    """Takes every camera token for a new one."""

    def _look_up(
        self,
        transaction: Connection,
        attempts: Sequence[Attempt],
        nuc_hashes: Sequence[bytes],
        _now: datetime,
    ) -> tuple[Mapping[bytes, DeviceStanding], Sequence[Repeat | None]]:
        return find_standings(transaction, nuc_hashes), [None] * len(attempts)


if __name__ == "__main__":
    setattr(authority, Validator.__name__, _Forgetful)  # what the settings cannot do
    run()
