"""Slow statements are told in the log, without the values in them."""

import logging

import pytest
from sqlalchemy import text

from birthmark_sma.storage.engine import Database

SECRET = "a value that nobody else should see"


@pytest.mark.parametrize(("seconds", "told"), [(0.0, True), (60.0, False)])
def test_slow_statements(
    database: Database, caplog: pytest.LogCaptureFixture, seconds: float, told: bool
) -> None:
    """Threat 28: by their text alone."""
    database.warn_when_slow(seconds)
    with caplog.at_level(logging.WARNING), database.read() as connection:
        connection.execute(text("SELECT 1\nWHERE :value = 'x'"), {"value": SECRET})
    assert ("a statement took" in caplog.text) is told
    assert ("SELECT 1 WHERE" in caplog.text) is told
    assert SECRET not in caplog.text
