"""Notice within half a second what other processes change about the keys."""

from collections.abc import Callable, Sequence
from datetime import datetime

from sqlalchemy import Connection

from birthmark_sma.authority.chore import Chore
from birthmark_sma.errors import DatabaseUnavailableError
from birthmark_sma.storage.engine import Database


class KeyWatch(Chore):
    """Calls each `poll` with a connection, twice a second."""

    name = "key-watch"
    every_seconds = 0.5

    def __init__(self, database: Database, polls: Sequence[Callable[[Connection], None]]) -> None:
        super().__init__()
        self._database = database
        self._polls = polls

    def work(self, now: datetime) -> None:  # noqa: ARG002  whatever the time is
        """Poll. An outage is told by whoever needs the database, and must not mean a long pause."""
        try:
            with self._database.read() as connection:
                for poll in self._polls:
                    poll(connection)
        except DatabaseUnavailableError:
            return
