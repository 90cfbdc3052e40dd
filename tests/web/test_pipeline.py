"""The steps of a request, where no server is needed to see them."""

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any, cast

import pytest
from fastapi import APIRouter, FastAPI
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.types import Message

from birthmark_sma.web.pipeline import Application, collect_endpoints
from tests.support.http.contexts import make_scope

PATH = "/health/live"  # its route asks for no credentials


async def broken_parts() -> AsyncIterator[bytes]:
    """Fail before the first part of a body."""
    for part in (b"",):
        if not part:
            raise RuntimeError("the database has gone")
        yield part


async def respond(_: Request) -> StreamingResponse:
    """Begin a response whose body never comes."""
    return StreamingResponse(broken_parts())


def make_application(path: str) -> Application:
    """Return an application with one endpoint, on a server that knows one host."""
    router = APIRouter()
    router.add_route(path, respond, ["GET"])
    application = Application(FastAPI(), [router], (), cast("Any", SimpleNamespace()))
    application.metrics = cast("Any", SimpleNamespace(answered=lambda _: None))
    known = SimpleNamespace(known_hosts={b"localhost"})
    application.state = cast("Any", SimpleNamespace(authenticator=known))
    return application


async def test_a_response_that_fails_after_its_head_is_cut_off() -> None:
    """The head leaves, and no second response follows: uvicorn closes the connection."""
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        await asyncio.Event().wait()  # the caller sends nothing more, and stays
        raise AssertionError

    scope = make_scope(PATH, headers=[(b"host", b"localhost")])
    with pytest.raises(RuntimeError):
        await make_application(PATH)(scope, receive, send)
    assert [each["type"] for each in sent] == ["http.response.start", "http.response.body"]
    assert sent[1]["more_body"]
    names = [name for name, _ in sent[0]["headers"]]
    assert b"x-request-id" in names
    assert b"content-security-policy" in names


def test_an_endpoint_without_a_route_is_refused_at_the_start() -> None:
    """Nobody has decided who may call it."""
    router = APIRouter()
    router.add_route("/api/v1/forgotten", respond, ["GET"])
    with pytest.raises(KeyError):
        collect_endpoints([router])
