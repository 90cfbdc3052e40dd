"""Take a request in: who sends it, and its body, bounded in size and time.

Works on the bare ASGI scope: the way of a camera token has no room for more.
"""

from typing import Any, TypeVar

import jiter
from pydantic import BaseModel, ValidationError
from starlette.requests import Request
from starlette.types import Receive, Scope

from birthmark_sma.authority.authority import Authority
from birthmark_sma.authority.callers import Caller
from birthmark_sma.web.problems import InvalidRequestError, RequestError
from birthmark_sma.web.wire import FieldError

Model = TypeVar("Model", bound=BaseModel)

_JSON = "application/json"
_UTF_8 = (b"utf-8", b"utf8")


def authority_of(request: Request) -> Authority:
    """Return the authority that this server runs."""
    authority: Authority = request.app.state.authority
    return authority


def caller_of(scope: Scope) -> Caller:
    """Say who sends a request that was let in."""
    caller: Caller = scope["caller"]
    return caller


def check_head(scope: Scope, limit: int) -> None:
    """Raise RequestError unless a head announces JSON as it is, and no more than `limit` bytes.

    A page of another site can send anything but JSON here unasked. Two types, another charset or a
    content coding would let a proxy and this server read one body differently.
    """
    media_types: list[bytes] = []
    length = coding = b""
    for name, value in scope["headers"]:
        if name == b"content-type":
            media_types.append(value)
        elif name == b"content-length":
            length = value
        elif name == b"content-encoding":
            coding = value
    if len(media_types) != 1 or not _is_json(media_types[0]) or coding:
        raise RequestError(
            "unsupported-media-type",
            f"Send the body as JSON in UTF-8, not compressed, with one Content-Type: {_JSON}.",
        )
    if length.isdigit() and int(length) > limit:
        raise _too_large(limit)


def _is_json(media_type: bytes) -> bool:
    """Say whether a Content-Type is JSON, which is UTF-8 (RFC 8259, section 8.1)."""
    name, *parameters = media_type.lower().split(b";")
    pairs = (each.partition(b"=") for each in parameters)
    charsets = (value for key, _, value in pairs if key.strip() == b"charset")
    return name.strip() == _JSON.encode() and all(
        each.strip(b' \t"') in _UTF_8 for each in charsets
    )


async def read_json(scope: Scope, receive: Receive, limit: int) -> bytes:
    """Read a JSON body of at most `limit` bytes.

    Raises RequestError as `check_head` does, and where it is too large or did not arrive whole.
    That it arrives in time is `http_protocol`'s to see to.
    """
    check_head(scope, limit)
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise RequestError("request-timeout", "The body did not arrive whole.")
        body += message.get("body", b"")
        if len(body) > limit:
            raise _too_large(limit)
        if not message.get("more_body", False):
            return bytes(body)


def parse(body: bytes, model: type[Model]) -> Model:
    """Parse a JSON body strictly. Raises InvalidRequestError.

    A name that stands twice in an object is refused: parsers disagree on which one counts (RFC
    8259, section 4).
    """
    return checked(parse_json(body), model)


def parse_json(body: bytes) -> Any:
    """Return a JSON value in which no name stands twice. Raises InvalidRequestError."""
    try:
        return jiter.from_json(body, allow_inf_nan=False, catch_duplicate_keys=True)
    except ValueError as error:
        raise InvalidRequestError([FieldError(field="body", detail=_json_fault(error))]) from None


def checked(value: object, model: type[Model]) -> Model:
    """Return what a value says, as a model. Raises InvalidRequestError."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise InvalidRequestError.of(error) from None


def _json_fault(error: ValueError) -> str:
    """Say what kind of fault it is; the parser's own words would quote the body."""
    if "duplicate key" in str(error).lower():
        return "a name stands twice in one object"
    return "it is not JSON"


def _too_large(limit: int) -> RequestError:
    return RequestError("body-too-large", f"A body here has at most {limit} bytes.")
