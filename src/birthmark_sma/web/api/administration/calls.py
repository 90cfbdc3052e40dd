"""Read a request of the administration API, call the authority in a thread, and respond.

Every endpoint of the API uses it. An act, its record and its stored response are one transaction.
The precondition of a request (If-Match, RFC 9110, section 13.1.1) is checked in that transaction,
so that two operators cannot overwrite each other's work.
"""

import json
import re
from collections.abc import Callable
from hashlib import sha256
from typing import Any, NamedTuple, TypeAlias, TypeVar
from urllib.parse import unquote_to_bytes

from pydantic import BaseModel
from sqlalchemy import Connection
from starlette.exceptions import HTTPException
from starlette.responses import Response

from birthmark_sma.authority.acts.actor import Actor, Source
from birthmark_sma.authority.idempotency.requests import IdempotentRequest, answer_once
from birthmark_sma.authority.idempotency.sealing import digest, storage_key
from birthmark_sma.authority.representations.json_text import as_json_text
from birthmark_sma.errors import InsufficientScopeError, PreconditionFailedError
from birthmark_sma.web.middleware.request_body import (
    MOST_VALUES,
    parse,
    read_idempotency_key,
    read_json,
)
from birthmark_sma.web.middleware.timeouts import run_with_timeout
from birthmark_sma.web.problems import FieldError, InvalidRequestError
from birthmark_sma.web.query_params import parse_number, parse_text, refused
from birthmark_sma.web.server_state import ApiRequest

Model = TypeVar("Model", bound=BaseModel)
Work: TypeAlias = Callable[[Connection, Actor], Any]

MOST_ITEMS = 1_000
"""The most items of a page."""
_USUAL_ITEMS = 50
_READ_SECONDS = 30.0
_ACT_SECONDS = 60.0  # from the whole body to the commit; then 503
_MOST_CHARACTERS = 128  # of a parameter in a path: more than any serial or request id has
_ENTITY_TAG = re.compile(r'[ \t]*((?:W/)?"[\x21\x23-\x7e\x80-\xff]*")[ \t]*')
_TAG_DIGITS = 32


# --- requests


def path_parameter(request: ApiRequest) -> str:
    """Return the parameter in the path, decoded. Raises HTTPException (404) if it is no name.

    The path is decoded here and nowhere else: `%2F` is a part of the name.
    """
    tail: bytes = request.scope["raw_path"][len(request.context.route.prefix) :]
    try:
        name = unquote_to_bytes(tail.partition(b"/")[0]).decode()
    except UnicodeDecodeError:
        raise HTTPException(404) from None
    if not is_name(name):
        raise HTTPException(404)
    return name


def is_name(text: str) -> bool:
    """Return whether a text can be the parameter in a path, which names something."""
    return 1 <= len(text) <= _MOST_CHARACTERS and text.isprintable()


def check_query(request: ApiRequest, *names: str) -> None:
    """Raise RequestError for a parameter of the query with another name, twice, or without a value.

    A filter that was misspelt, or whose value a script did not set, would select everything.
    """
    items = request.query_params.multi_items()
    given = [name for name, _ in items]
    if not set(given) <= set(names):
        known = ", ".join(names) or "no parameters"
        raise refused(f"A parameter of the query is not known here. This path has: {known}.")
    if len(given) > len(set(given)):
        raise refused("Each parameter of the query may occur once.")
    for name, value in items:
        if not value.strip():
            raise refused(f"{name} has no value. Leave it out to search for all.")


def parse_limit(request: ApiRequest) -> int:
    """Return the wanted number of items, 50 if none is given. Raises RequestError."""
    limit = parse_number(request, "limit")
    if limit is None:
        return _USUAL_ITEMS
    if not 1 <= limit <= MOST_ITEMS:
        raise refused(f"limit is a whole number from 1 to {MOST_ITEMS:,}.")
    return limit


def parse_flag(request: ApiRequest, name: str) -> bool:
    """Return True for `true`, False for `false` or without the parameter. Raises RequestError."""
    value = parse_text(request, name)
    if value not in {None, "true", "false"}:
        raise refused(f"{name} is true or false.")
    return value == "true"


def check_serials_allowed(request: ApiRequest) -> None:
    """Raise InsufficientScopeError if the access key may not read the serials of this request."""
    if not request.context.known_caller.may_read_serials:
        raise InsufficientScopeError(
            "The disclosure of this access key leaves out serials, so it reads no devices and"
            " flags, and searches for none. Use a key with --disclosure serial, or without"
            " --disclosure"
        )


async def read_body(
    request: ApiRequest,
    model: type[Model],
    *,
    most_bytes: int | None = None,
    most_values: int = MOST_VALUES,
) -> Model:
    """Return the body as a model. Raises RequestError and InvalidRequestError.

    A body is needed, `{}` at least. Its Content-Type keeps the pages of other sites away, as they
    can only send it after a CORS preflight.
    """
    limit = most_bytes or request.server.authority.settings.max_body_bytes
    body = await read_json(request.context.headers, request.receive, limit)
    return parse(body, model, most_values)


def actor_of(request: ApiRequest) -> Actor:
    """Return who acts: the access key of the request, or the address where access is open."""
    caller = request.context.known_caller
    name, role = caller.identity, None
    if caller.key is not None:
        name, role = caller.key.name, caller.key.scope.value
    return Actor(name, Source.API, role, request.context.request_id)


# --- responses


def respond(value: Any, headers: dict[str, str] | None = None) -> Response:
    """Return a value as a JSON response."""
    return Response(as_json_text(value), headers=headers, media_type="application/json")


class Tagged(NamedTuple):
    """A value to respond with, and its entity tag."""

    value: Any
    tag: str


async def answer(request: ApiRequest, read: Callable[[Connection], Any]) -> Response:
    """Return what `read` gets from the database: a value, or one with its entity tag.

    Raises DatabaseUnavailableError after 30 seconds.
    """
    database = request.server.authority.database

    def read_all() -> Response:
        with database.read() as connection:
            found = read(connection)
        if isinstance(found, Tagged):
            return respond(found.value, {"ETag": found.tag})
        return respond(found)

    return await run_with_timeout(request.server.slow, read_all, _READ_SECONDS)


async def perform(request: ApiRequest, asked: BaseModel, work: Work) -> Response:
    """Return what `work` did in a transaction. A repeated request gets the first response again.

    `work` may run again if the database asks for it. Raises DatabaseUnavailableError after 60
    seconds: the act may then be done, and a repetition with its Idempotency-Key tells.
    """
    server, actor = request.server, actor_of(request)
    once = _idempotent(request, asked)
    database, keks = server.authority.database, server.authority.secrets.keks

    def act(transaction: Connection) -> bytes:
        def do() -> bytes:
            return as_json_text(work(transaction, actor)).encode()

        if once is None:
            return do()
        return answer_once(transaction, keks, database.clock, once, do)

    body = await run_with_timeout(server.acts, lambda: database.transact(act), _ACT_SECONDS)
    return Response(body, media_type="application/json")


def _idempotent(request: ApiRequest, asked: BaseModel) -> IdempotentRequest | None:
    key = read_idempotency_key(request.headers)
    if key is None:
        return None
    path = request.scope["raw_path"].decode("latin-1")
    content = json.dumps([request.method, path, asked.model_dump(mode="json")], sort_keys=True)
    return IdempotentRequest(storage_key(request.context.known_caller.key_id, key), digest(content))


# --- preconditions


def entity_tag(value: Any) -> str:
    """Return the entity tag of a value: the beginning of the SHA-256 of its JSON, in quotes."""
    return f'"{sha256(as_json_text(value).encode()).hexdigest()[:_TAG_DIGITS]}"'


def check_precondition(request: ApiRequest, current: Callable[[], str]) -> None:
    """Raise PreconditionFailedError unless If-Match has the current entity tag, or is `*`.

    Call it in the transaction of the act, after the object was locked. `current` returns its tag.
    Raises InvalidRequestError for a field that is no list of entity tags.
    """
    fields = request.headers.getlist("if-match")
    if not fields or [each.strip() for each in fields] == ["*"]:
        return
    wanted = ", ".join(fields)
    tags, place = [], 0
    while (found := _ENTITY_TAG.match(wanted, place)) is not None:
        tags.append(found[1])
        place = found.end() + 1
        if wanted[found.end() : place] != ",":
            break
    if place <= len(wanted):
        detail = "it is * or a list of entity tags in quotes, as ETag of a response has them"
        raise InvalidRequestError([FieldError(field="If-Match", detail=detail)])
    # A weak tag begins with W/ and equals none: If-Match needs the strong comparison.
    if current() not in tags:
        raise PreconditionFailedError
