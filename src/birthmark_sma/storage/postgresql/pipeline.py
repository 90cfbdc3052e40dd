"""Run several statements in one round trip: libpq's pipeline mode.

`storage.postgresql_driver` sends BEGIN with the first statement of a writer's transaction, and the
last one with COMMIT. After a statement that failed, PostgreSQL runs none of those sent with it.
Pipeline mode has no blocking call that releases the interpreter's lock, and waiting for an answer
with the lock held would stop all threads. So this waits for the socket instead.
"""

import functools
import hashlib
import select
from collections.abc import Sequence
from typing import NamedTuple

import psycopg
from psycopg import pq
from psycopg.pq.abc import PGconn, PGresult

BINARY = 1
"""libpq's code for the binary format."""
METHODS = (
    "enter_pipeline_mode",
    "exit_pipeline_mode",
    "pipeline_sync",
    "send_query_prepared",
    "send_query_params",
    "flush",
    "is_busy",
    "consume_input",
    "get_result",
)
"""The methods of psycopg's PGconn that this module calls."""


class Statement(NamedTuple):
    """A statement with `$1`-style parameters in PostgreSQL's binary format."""

    text: str
    parameters: Sequence[bytes] = ()

    @property
    def formats(self) -> list[int]:
        """Return the formats of the parameters."""
        return [BINARY] * len(self.parameters)


@functools.lru_cache(maxsize=1024)
def name_of(text: str) -> bytes:
    """Return the name of a prepared statement: a digest of its text.

    Clients behind a connection pooler share these names. A digest never names two statements.
    """
    return b"sma_" + hashlib.sha256(text.encode()).hexdigest()[:32].encode()


def run(pgconn: PGconn, statements: Sequence[Statement], *, prepared: bool) -> list[PGresult]:
    """Run statements in one round trip; return their results, in order.

    With `prepared`, all of them are prepared. If one fails, its result says why, and those after it
    have a result of status PIPELINE_ABORTED. Raises psycopg's OperationalError if the connection is
    lost and PostgreSQL did not say why. Then any of the statements may have been run.
    """
    results: list[PGresult] = []
    try:
        pgconn.enter_pipeline_mode()
        for each in statements:
            if prepared:
                pgconn.send_query_prepared(
                    name_of(each.text), each.parameters, each.formats, BINARY
                )
            else:
                pgconn.send_query_params(
                    each.text.encode(), each.parameters, None, each.formats, BINARY
                )
        pgconn.pipeline_sync()
        _read(pgconn, len(statements), results)
        pgconn.exit_pipeline_mode()
    except psycopg.OperationalError:
        # The server closes the connection after a fatal error, and has said why.
        if all(each.status != pq.ExecStatus.FATAL_ERROR for each in results):
            raise
    return results


def _read(pgconn: PGconn, count: int, results: list[PGresult]) -> None:
    """Wait for `count` results and for the end of the pipeline, and add the results to a list."""
    polled = select.poll()
    polled.register(pgconn.socket, select.POLLIN | select.POLLOUT)
    while pgconn.flush():
        polled.poll()
        pgconn.consume_input()  # the server may wait until its answers are taken
    polled.modify(pgconn.socket, select.POLLIN)
    polled.poll()
    pgconn.consume_input()
    for place in range(count + 1):
        while pgconn.is_busy():
            polled.poll()
            pgconn.consume_input()
        result = pgconn.get_result()
        if result is None:
            raise psycopg.OperationalError("the connection is lost")
        if place < count:
            results.append(result)
            pgconn.get_result()  # None follows each result, but not the end of the pipeline
