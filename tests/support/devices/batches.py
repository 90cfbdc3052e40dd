"""A batch of validations that is under way, for tests of acts that must wait for it."""

import secrets
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from sqlalchemy import Connection

from birthmark_sma.authority.validation.store import make_store
from birthmark_sma.storage.engine import Database

_SECONDS = 20


@contextmanager
def validation_under_way(database: Database) -> Iterator[None]:
    """Begin a batch, which looks up its devices and table keys, and commit it after the block."""
    judging, judged = threading.Event(), threading.Event()

    def validate(transaction: Connection) -> None:
        store = make_store(database)
        store.hold_statuses(transaction)
        store.find_devices(transaction, [secrets.token_bytes(32)])
        judging.set()
        assert judged.wait(_SECONDS)

    with ThreadPoolExecutor(1) as thread:
        batch = thread.submit(database.transact, validate)
        assert judging.wait(_SECONDS)
        try:
            yield
        finally:
            judged.set()
        batch.result(_SECONDS)
