"""What the tests of the client share: each way to ask the authority."""

import ssl
from collections.abc import Sequence
from typing import Any

import pytest

from birthmark_sma.client import Outcome
from tests.support.http.validation_calls import CALLS, Ask

_TLS = ssl.create_default_context()


@pytest.fixture(params=CALLS)
def ask(request: pytest.FixtureRequest) -> Ask:
    """Each way to ask in turn.

    A client reads the system's certificates when it is made, which costs more than all else in most
    of these tests. Where a URL is plain HTTP they are not used, so there clients share them.
    """
    call = CALLS[request.param]

    def asked(url: str, **arguments: Any) -> Sequence[Outcome]:
        if url.startswith("http:"):
            arguments.setdefault("tls", _TLS)
        return call(url, **arguments)

    return asked
