"""Strict-Transport-Security: for every host that the world can reach, and for no other."""

import asyncio

import pytest
from starlette.types import Message

from birthmark_sma.web.middleware.security_headers import STRICT_TRANSPORT, ResponseHeaders
from tests.support.http.contexts import make_context


def sent_for(host: bytes, scheme: str = "https") -> bool:
    """Return whether the header goes out for a request of this Host."""
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    headers = ResponseHeaders(make_context(scheme=scheme, headers=[(b"host", host)]), send)

    async def begin() -> None:
        await headers.send({"type": "http.response.start", "status": 200, "headers": []})

    asyncio.run(begin())
    return STRICT_TRANSPORT in sent[0]["headers"]


@pytest.mark.parametrize("host", [b"localhost", b"LocalHost:8443", b"127.0.0.1:8443", b"[::1]:1"])
def test_it_is_not_sent_for_this_machine(host: bytes) -> None:
    """Browsers would refuse plain HTTP to every other program that listens on localhost."""
    assert not sent_for(host)


@pytest.mark.parametrize(
    "host", [b"sma.example.org", b"localhost.example.org", b"127.0.0.1.example.org", b"", b"[::1]x"]
)
def test_it_is_sent_for_other_hosts_over_tls(host: bytes) -> None:
    """A name that only begins like this machine's is a name of somebody else."""
    assert sent_for(host)
    assert not sent_for(host, "http")
