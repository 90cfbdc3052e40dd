"""Servers that take the tokens of programs in other languages."""

import pytest

from tests.support.programs.running import Running, Servers


@pytest.fixture(scope="module")
def running_once(servers: Servers) -> Running:
    """A running server, for tests to which the kind of database makes no difference."""
    return servers.get("sqlite")
