"""Run a transaction again when the database asks for it. The only place that decides this.

PostgreSQL ends a transaction with "try again" when it conflicts with another one: a deadlock, or a
serialization failure, which may come as late as with COMMIT. So does a connection pooler that
switched the server connection under a prepared statement. Nothing was committed then, and no caller
needs to know. `Database.transact` and the group commit run their transactions through `retry`. What
the group commit cannot know, `storage.outages.writer_commits` looks up before.
"""

import logging
import secrets
import time
from collections.abc import Callable
from time import monotonic
from typing import TypeVar

from birthmark_sma.errors import DatabaseFault, DatabaseUnavailableError

Result = TypeVar("Result")

_SECONDS = 8.0
"""No attempt begins later than this: SMA_ANSWER_TIMEOUT is 10 seconds unless configured."""
_FIRST_PAUSE_SECONDS = 0.005
_LONGEST_PAUSE_SECONDS = 0.5
_NEW_CONNECTION_HELPS = (DatabaseFault.AWAY, DatabaseFault.READ_ONLY)

_log = logging.getLogger(__name__)


def retry(attempt: Callable[[], Result]) -> Result:
    """Call `attempt`, which runs one transaction, until it succeeds; return its result.

    Conflicting transactions are tried for up to 8 seconds. The pauses between the attempts double,
    and are random so that two transactions do not meet again. After a lost connection, or one to a
    server that became read-only, there is one more attempt, over a new connection. Raises the last
    DatabaseUnavailableError: at once if the commit may have happened, as a second attempt could do
    the work twice.
    """
    began = monotonic()
    pause = _FIRST_PAUSE_SECONDS
    may_reconnect = True
    while True:
        try:
            return attempt()
        except DatabaseUnavailableError as error:
            reconnects = may_reconnect and error.fault in _NEW_CONNECTION_HELPS
            if error.may_have_committed or not (error.try_again or reconnects):
                raise
            if monotonic() + pause - began > _SECONDS:
                raise
            if not error.try_again:
                may_reconnect = False
                # Not a warning: a command would print it beside its own message.
                _log.info("a transaction is run again, over a new connection: %s", error.advice)
        time.sleep(pause * (500 + secrets.randbelow(500)) / 1000)
        pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
