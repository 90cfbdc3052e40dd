"""Pages of a server whose machine has a wrong clock: they follow the database's clock."""

import asyncio
from collections.abc import Iterator
from datetime import timedelta
from types import SimpleNamespace
from typing import cast

import pytest
from starlette.requests import empty_receive

from birthmark_sma.authority.authority import Authority
from birthmark_sma.web.dashboard.certificates import show_certificates
from birthmark_sma.web.middleware.timeouts import WorkerPool
from birthmark_sma.web.server_state import ApiRequest, ServerState
from tests.support.http.contexts import make_context
from tests.support.programs.wrong_clock import machine_clock_ahead

LIFETIMES = timedelta(days=365 * 40)
"""Longer than any certificate of an authority is valid."""


@pytest.fixture
def request_for_page(authority: Authority) -> Iterator[ApiRequest]:
    """A request to the dashboard of an authority, without a server."""
    pool = WorkerPool(1, "test", most_waiting=1)
    request = ApiRequest(
        {
            "type": "http",
            "method": "GET",
            "scheme": "http",
            "server": ("127.0.0.1", 80),
            "path": "/dashboard/certificates",
            "query_string": b"",
            "headers": [],
        },
        empty_receive,
    )
    request.context = make_context("/dashboard/certificates")
    request.server = cast("ServerState", SimpleNamespace(authority=authority, slow=pool))
    yield request
    pool.shutdown()


def test_certificates_expire_by_the_clock_of_the_database(
    authority: Authority, request_for_page: ApiRequest
) -> None:
    """As on the other pages. SQLite has no clock of its own, so there the machine's counts."""
    right = asyncio.run(show_certificates(request_for_page))
    assert b"expired" not in bytes(right.body)
    with machine_clock_ahead(LIFETIMES):
        page = asyncio.run(show_certificates(request_for_page))
    assert (b"expired" in bytes(page.body)) is (authority.database.dialect_name == "sqlite")
