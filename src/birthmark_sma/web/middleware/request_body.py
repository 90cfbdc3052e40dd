"""Take a request in: who sends it, and its body, bounded in size and time.

Works on the bare ASGI scope: the way of a camera token has no room for more.
"""

from typing import Any, TypeVar

import jiter
from pydantic import BaseModel, ValidationError
from starlette.requests import Request
from starlette.types import Receive, Scope

from birthmark_sma.authority.access.caller import Caller
from birthmark_sma.authority.authority import Authority
from birthmark_sma.web.api.models import FieldError
from birthmark_sma.web.problems import MOST_ERRORS, InvalidRequestError, RequestError

Model = TypeVar("Model", bound=BaseModel)

MOST_VALUES = 1_000
"""The most values that the body of a request has, counted by what separates them. A camera token
has four, a device's certificate request none in its PEM."""

_JSON = "application/json"
_UTF_8 = (b"utf-8", b"utf8")
_HEAD_BYTES = 4_096


def get_authority(request: Request) -> Authority:
    """Return the authority that this server runs."""
    authority: Authority = request.app.state.authority
    return authority


def get_caller(scope: Scope) -> Caller:
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


def parse(body: bytes, model: type[Model], most_values: int = MOST_VALUES) -> Model:
    """Parse a JSON body strictly. Raises InvalidRequestError.

    A name that stands twice in an object is refused: parsers disagree on which one counts (RFC
    8259, section 4). A body of more than about `most_values` values is refused unparsed: others
    would wait for it.
    """
    if count_values(body) > most_values:
        raise too_many_values(body, model, most_values)
    return checked(parse_json(body), model)


def count_values(text: bytes) -> int:
    """Return about how many values a JSON text has, by what separates and begins them."""
    return text.count(b",") + text.count(b"[") + text.count(b"{")


def parse_json(body: bytes) -> Any:
    """Return a JSON value in which no name stands twice. Raises InvalidRequestError."""
    try:
        return jiter.from_json(body, allow_inf_nan=False, catch_duplicate_keys=True)
    except ValueError as error:
        raise InvalidRequestError([FieldError(field="body", detail=_json_fault(error))]) from None


def checked(value: object, model: type[Model], most: int = MOST_ERRORS) -> Model:
    """Return what a value says, as a model. Raises InvalidRequestError.

    pydantic makes an error for each unknown member: it sees no more than `most` of these.
    """
    value, more = _without_surplus(value, model, most)
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise InvalidRequestError.of(error, more) from None


def _without_surplus(value: object, model: type[BaseModel], most: int) -> tuple[object, int]:
    """Take most unknown members out of an object, and those in it; say how many."""
    fields = model.model_fields
    if not isinstance(value, dict):
        return value, 0
    unknown = [name for name in value if name not in fields]
    surplus = unknown[most:]
    kept = {name: each for name, each in value.items() if name in fields}
    more = len(surplus)
    for name, each in kept.items():
        kind = fields[name].annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            kept[name], within = _without_surplus(each, kind, most)
            more += within
    kept.update((name, value[name]) for name in unknown[:most])
    return kept, more if model.model_config.get("extra") == "forbid" else 0


def too_many_values(body: bytes, model: type[BaseModel], most: int) -> InvalidRequestError:
    """Say what is wrong with the beginning of a body that is not parsed, and how much there is."""
    try:
        head = jiter.from_json(body[:_HEAD_BYTES], partial_mode=True)
    except ValueError:
        head = None
    detail = f"it has more than {most:,} values, or is not JSON"
    fault = [FieldError(field="body", detail=detail)]
    if isinstance(head, dict) and len(head) > MOST_ERRORS + len(model.model_fields):
        try:
            checked(head, model)
        except InvalidRequestError as error:
            fault += error.fields
            return InvalidRequestError(fault[:MOST_ERRORS], body.count(b",") - MOST_ERRORS + 1)
    return InvalidRequestError(fault)


def _json_fault(error: ValueError) -> str:
    """Say what kind of fault it is; the parser's own words would quote the body."""
    if "duplicate key" in str(error).lower():
        return "a name stands twice in one object"
    return "it is not JSON"


def _too_large(limit: int) -> RequestError:
    return RequestError("body-too-large", f"A body here has at most {limit} bytes.")
