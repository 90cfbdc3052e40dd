"""Clients of the sandbox that tests share."""

from collections.abc import Iterator

import httpx2
import pytest

from tests.support.programs.running import Running


@pytest.fixture
def client(sandbox: Running) -> Iterator[httpx2.Client]:
    """A client of it."""
    with sandbox.client() as opened:
        yield opened
