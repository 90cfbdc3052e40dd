"""Take a request in: who sends it, and its body, bounded in size and time."""

import asyncio
from typing import TypeVar

import jiter
from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect, Request

from birthmark_sma.authority.authority import Authority
from birthmark_sma.authority.validation import Caller
from birthmark_sma.web.problems import InvalidRequestError, RequestError
from birthmark_sma.web.wire import FieldError

Model = TypeVar("Model", bound=BaseModel)

_BODY_SECONDS = 30
_MAX_ADDRESS_CHARACTERS = 45
_JSON = "application/json"


def authority_of(request: Request) -> Authority:
    """Return the authority that this server runs."""
    authority: Authority = request.app.state.authority
    return authority


def caller_of(request: Request) -> Caller:
    """Say who sends a request: the address at the other end of the connection."""
    if request.client is None:
        return Caller(None)
    return Caller(request.client.host[:_MAX_ADDRESS_CHARACTERS])


async def parse_json(request: Request, model: type[Model]) -> Model:
    """Read and parse a JSON body.

    Raises InvalidRequestError where it is malformed, RequestError where it is too large, too slow,
    or not JSON by its Content-Type: a page of another site can send anything else here unasked.
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != _JSON:
        raise RequestError(
            "unsupported-media-type", f"Send the body as JSON, with Content-Type: {_JSON}."
        )
    body = await _read_body(request, authority_of(request).settings.max_body_bytes)
    return parse(body, model)


def parse(body: bytes, model: type[Model]) -> Model:
    """Parse a JSON body strictly. Raises InvalidRequestError.

    A name that stands twice in an object is refused: parsers disagree on which one counts (RFC
    8259, section 4).
    """
    try:
        value = jiter.from_json(body, allow_inf_nan=False, catch_duplicate_keys=True)
    except ValueError as error:
        raise InvalidRequestError([FieldError(field="body", detail=_json_fault(error))]) from None
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise InvalidRequestError.of(error) from None


def _json_fault(error: ValueError) -> str:
    """Say what kind of fault it is; the parser's own words would quote the body."""
    if "duplicate key" in str(error).lower():
        return "a name stands twice in one object"
    return "it is not JSON"


async def _read_body(request: Request, limit: int) -> bytes:
    length = request.headers.get("content-length", "")
    if length.isdigit() and int(length) > limit:
        raise _too_large(limit)
    body = bytearray()
    try:
        async with asyncio.timeout(_BODY_SECONDS):
            async for chunk in request.stream():
                body += chunk
                if len(body) > limit:
                    raise _too_large(limit)
    except TimeoutError:
        raise RequestError(
            "request-timeout", f"The body did not arrive within {_BODY_SECONDS} seconds."
        ) from None
    except ClientDisconnect:
        raise RequestError(
            "request-timeout", "The client left before the body was whole."
        ) from None
    return bytes(body)


def _too_large(limit: int) -> RequestError:
    return RequestError("body-too-large", f"A body here has at most {limit} bytes.")
