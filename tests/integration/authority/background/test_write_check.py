"""A probing write finds what a batch would find, and leaves nothing."""

import logging
from datetime import UTC, datetime
from functools import partial
from time import monotonic

import pytest
from sqlalchemy import Connection

from birthmark_sma.authority.authority import Authority
from birthmark_sma.authority.background.write_check import (
    CheckedWriter,
    WriteCheck,
    write_device,
    write_fail,
)
from birthmark_sma.authority.validation.store import make_store
from birthmark_sma.errors import DatabaseUnavailableError
from birthmark_sma.storage.schema import metadata
from birthmark_sma.web.api.health import check_writes
from tests.support.authorities import execute, new_authority, rows_of, small_settings
from tests.support.databases.frozen_proxy import FrozenProxy

NOW = datetime.now(UTC)


def check_of(authority: Authority) -> WriteCheck:
    """Return the task, which is not started."""
    return WriteCheck(
        authority.database,
        CheckedWriter(
            authority.validator.writer, partial(write_fail, make_store(authority.database))
        ),
        CheckedWriter(authority.provisioner.writer, write_device),
    )


def sizes(authority: Authority) -> dict[str, int]:
    """Return the number of rows of each table."""
    return {
        table.name: rows_of(authority.database, f"SELECT count(*) FROM {table.name}")[0][0]
        for table in metadata.sorted_tables
    }


def test_it_leaves_no_row(authority: Authority) -> None:
    before = sizes(authority)
    check_of(authority).work(NOW)
    assert sizes(authority) == before
    assert authority.validator.writer.health.is_known
    assert authority.provisioner.writer.health.is_known
    check_writes(authority)


@pytest.mark.parametrize(
    "table",
    [
        "validation_history",
        "validation_counters",
        "running_totals",
        "sighted_tokens",
        "writer_commits",
        "registered_devices",
        "device_family_counters",
    ],
)
def test_it_finds_a_table_that_is_gone(authority: Authority, table: str) -> None:
    """And that it is there again. Each change is logged once."""
    check = check_of(authority)
    execute(authority.database, f"ALTER TABLE {table} RENAME TO elsewhere")
    for _ in range(2):
        check.work(NOW)
        with pytest.raises(DatabaseUnavailableError, match="lacks"):
            check_writes(authority)
    execute(authority.database, f"ALTER TABLE elsewhere RENAME TO {table}")
    check.work(NOW)
    check_writes(authority)


def test_it_logs_each_change_once(authority: Authority, caplog: pytest.LogCaptureFixture) -> None:
    check = check_of(authority)
    caplog.set_level(logging.WARNING)
    full = DatabaseUnavailableError("no room", "make some")
    authority.validator.writer.health.failed(monotonic(), full)
    check._log_change(check._writers[0])
    check._log_change(check._writers[0])
    check.work(NOW)
    check.work(NOW)
    assert [each.getMessage() for each in caplog.records] == [
        "not ready: the validation-writer cannot write: no room: make some",
        "the validation-writer can write again",
    ]


def test_a_healthy_writer_is_checked_once(authority: Authority) -> None:
    """At the start."""
    calls = []

    def write(_transaction: Connection, now: datetime) -> None:
        calls.append(now)

    check = WriteCheck(authority.database, CheckedWriter(authority.validator.writer, write))
    for _ in range(3):
        check.work(NOW)
    assert len(calls) == 1


def test_a_connection_that_went_bad_is_no_fault(
    postgres_url: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """It seems open until the next statement. The check then opens a new one, as a batch does."""
    with FrozenProxy(postgres_url) as proxy:
        settings = small_settings(tmp_path_factory.mktemp("authority"), proxy.url)
        with new_authority(settings) as authority:
            proxy.break_connections()
            check_of(authority).work(NOW)
            check_writes(authority)
            assert authority.validator.writer.health.is_known


def test_an_error_that_is_no_fault_of_the_database_is_logged(
    authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    """The server must not stay unready for a bug of the check."""

    def write(_transaction: Connection, _now: datetime) -> None:
        raise ZeroDivisionError

    check = WriteCheck(authority.database, CheckedWriter(authority.validator.writer, write))
    check.work(NOW)
    check_writes(authority)
    assert "the probing write of the validation-writer failed" in caplog.text
