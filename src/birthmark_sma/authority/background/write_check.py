"""Background task that finds out whether the database takes writes while no requests tell.

Started by `authority.py` in every server process. A server that is not ready gets no requests, so
no batch can show that a fault is over. This task then writes as a batch would, and undoes it. It
must never leave a row, and never report a fault that it did not meet.
"""

import logging
import secrets
from collections.abc import Callable
from datetime import datetime
from functools import partial
from time import monotonic
from typing import Any, NamedTuple

from sqlalchemy import Connection

from birthmark_sma.authority.devices import store as device_store
from birthmark_sma.authority.devices.store import Device
from birthmark_sma.authority.validation import replay_ledger
from birthmark_sma.authority.validation.records import AuditRow
from birthmark_sma.authority.validation.store import ValidationStore
from birthmark_sma.errors import DatabaseUnavailableError
from birthmark_sma.protocol.camera_token import DIGEST_BYTES, ENCRYPTED_NUC_HASH_BYTES
from birthmark_sma.protocol.replay import SeenToken
from birthmark_sma.protocol.verdict import DeviceStatus, Reason
from birthmark_sma.runtime.background_task import BackgroundTask
from birthmark_sma.storage.engine import Database
from birthmark_sma.storage.group_commit import GroupCommit
from birthmark_sma.storage.outages.commit_marks import CommitMark, write_mark
from birthmark_sma.storage.outages.deadlines import QUICK_SECONDS
from birthmark_sma.storage.outages.retries import retry
from birthmark_sma.storage.portable_sql import check_deferred_constraints

_FAMILY = "sma-write-check"

_log = logging.getLogger(__name__)


class CheckedWriter(NamedTuple):
    """A writer, and a write like those of its batches."""

    commits: GroupCommit[Any, Any]
    write: Callable[[Connection, datetime], None]


class WriteCheck(BackgroundTask):
    """Tries to write at the start, and then every second while a writer has a fault.

    `writers` are checked one after the other. Each change is logged once.
    """

    name = "write-check"
    every_seconds = 1.0

    def __init__(self, database: Database, *writers: CheckedWriter) -> None:
        super().__init__()
        self._database = database
        self._writers = writers
        self._faulty: set[str] = set()  # the names of the writers whose fault was logged

    def work(self, now: datetime) -> None:  # noqa: ARG002 - by the database's clock
        """Check the writers whose last write failed or hung, or that have written nothing yet."""
        for writer in self._writers:
            commits = writer.commits
            # A batch under way tells by itself. The probing write would wait for the same lock.
            if not commits.oldest_seconds and (commits.fault or not commits.health.is_known):
                self._check(writer)
            self._log_change(writer)

    def _check(self, writer: CheckedWriter) -> None:
        began = monotonic()
        error = None
        try:
            # As a batch does: one pooled connection that went bad says nothing of the database.
            retry(partial(self._write_nothing, writer))
        except DatabaseUnavailableError as fault:
            error = fault
        except Exception:  # such as a constraint of the operator's: batches may not meet it
            if not writer.commits.health.is_known or writer.commits.fault:
                _log.exception("the probing write of the %s failed", writer.commits.name)
        writer.commits.health.probed(began, error)

    def _write_nothing(self, writer: CheckedWriter) -> None:
        """Write as a batch does, undo it, and commit.

        The commit makes both databases wait for the disk, and PostgreSQL for its synchronous
        standby, as that of a batch does. A mere rollback of SQLite would not touch the disk.
        """
        now = self._database.clock.now()
        with self._database.write(QUICK_SECONDS) as transaction:
            savepoint = transaction.begin_nested()
            write_mark(transaction, CommitMark(secrets.token_hex(16), 1), now)
            writer.write(transaction, now)
            check_deferred_constraints(transaction)
            savepoint.rollback()

    def _log_change(self, writer: CheckedWriter) -> None:
        name, fault = writer.commits.name, writer.commits.fault
        if fault is not None and name not in self._faulty:
            advice = f": {fault.advice}" if fault.advice else ""
            _log.warning("not ready: the %s cannot write: %s%s", name, fault, advice)
            self._faulty.add(name)
        elif fault is None and name in self._faulty:
            _log.warning("the %s can write again", name)
            self._faulty.discard(name)


def write_fail(store: ValidationStore, transaction: Connection, now: datetime) -> None:
    """Write what a batch of one camera token with the verdict FAIL writes.

    `store` must not be the writer's: that one remembers what was written.
    """
    digest = secrets.token_bytes(DIGEST_BYTES)
    reason = Reason.NOT_OPENED
    row = AuditRow(
        encrypted_nuc_hash=secrets.token_bytes(ENCRYPTED_NUC_HASH_BYTES),
        table_id=0,
        key_index=0,
        validation_result=reason.verdict.value,
        reason=reason.value,
        device_serial=None,
        validated_at=now,
        request_ip=None,
    )
    store.find_devices(transaction, [secrets.token_bytes(32)])
    replay_ledger.note(store, transaction, [SeenToken(digest, "")], now, {digest: 0})
    store.write(transaction, [row])


def write_device(transaction: Connection, now: datetime) -> None:
    """Add a device that nothing else has."""
    name = f"{_FAMILY}-{secrets.token_hex(16)}"
    device = Device(
        device_serial=name,
        nuc_hash=secrets.token_bytes(32),
        table_assignments=(0, 1, 2),
        device_certificate="",
        certificate_serial=secrets.token_hex(16),
        device_public_key="",
        public_key_fingerprint=secrets.token_bytes(32),
        device_family=_FAMILY,
        app_version=None,
        status=DeviceStatus.ACTIVE,
        provisioning_id=name,
        provisioned_at=now,
        table_epochs=(0, 0, 0),
    )
    device_store.add_devices(transaction, [device])
