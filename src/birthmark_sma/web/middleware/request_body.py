"""Read the body of a request with a limit of its size, and parse it strictly as JSON.

It also reads the Idempotency-Key, which says whether the body was sent before.
The endpoints that take JSON call these functions. `web.transport.protocol` limits the time
in which a body must arrive. No error message repeats a value of the body.
"""

from collections.abc import Iterable
from typing import Any, TypeVar

import jiter
from pydantic import BaseModel, ValidationError
from starlette.datastructures import Headers
from starlette.types import Receive

from birthmark_sma.web.problems import MOST_ERRORS, FieldError, InvalidRequestError, RequestError
from birthmark_sma.web.request_context import Header

Model = TypeVar("Model", bound=BaseModel)

MOST_VALUES = 1_000
"""The most values in a body, as `count_values` counts them. A camera token has 4. The PEM text of
a certification request adds none."""

IDEMPOTENCY_HEADER = "Idempotency-Key"
_MAX_KEY_CHARACTERS = 255

IDEMPOTENCY_PARAMETER: dict[str, Any] = {
    "name": IDEMPOTENCY_HEADER,
    "in": "header",
    "required": False,
    "description": "1 to 255 visible ASCII characters, new for every new request",
    "schema": {
        "type": "string",
        "minLength": 1,
        "maxLength": _MAX_KEY_CHARACTERS,
        "pattern": "^[!-~]+$",
    },
}
"""The description of the field in the OpenAPI document."""

_JSON = "application/json"
_JSON_BYTES = _JSON.encode()
_UTF_8 = (b"utf-8", b"utf8")
_HEAD_BYTES = 4_096  # the beginning of a refused body that is parsed for its error message


def check_head(headers: Iterable[Header], limit: int) -> None:
    """Raise RequestError unless the head announces plain JSON of at most `limit` bytes.

    The status is 415 or 413. This prevents two attacks. A page of another site may send anything
    but JSON without a CORS preflight. Two Content-Type fields, another charset or a content coding
    would let a proxy and this server read the same body differently.
    """
    media_types: list[bytes] = []
    length = coding = b""
    for name, value in headers:
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
    """Return True for application/json without a charset or with UTF-8 (RFC 8259, section 8.1)."""
    if media_type == _JSON_BYTES:
        return True
    name, *parameters = media_type.lower().split(b";")
    pairs = (each.partition(b"=") for each in parameters)
    charsets = (value for key, _, value in pairs if key.strip() == b"charset")
    return name.strip() == _JSON_BYTES and all(each.strip(b' \t"') in _UTF_8 for each in charsets)


async def read_json(headers: Iterable[Header], receive: Receive, limit: int) -> bytes:
    """Return a JSON body of at most `limit` bytes, not parsed.

    Raises RequestError as `check_head` does, and if the body is larger or incomplete.
    """
    check_head(headers, limit)
    return await read_bytes(receive, limit)


async def read_bytes(receive: Receive, limit: int) -> bytes:
    """Return a body of at most `limit` bytes. Raises RequestError if it is larger or incomplete."""
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise RequestError(
                "request-timeout", "The connection ended before the body was complete."
            )
        body += message.get("body", b"")
        # Checked with each part: Content-Length may be missing.
        if len(body) > limit:
            raise _too_large(limit)
        if not message.get("more_body", False):
            return bytes(body)


def parse(body: bytes, model: type[Model], most_values: int = MOST_VALUES) -> Model:
    """Parse a JSON body strictly into a model. Raises InvalidRequestError.

    An object with a duplicate name is refused, as parsers disagree on which one counts (RFC 8259,
    section 4). A body of more than about `most_values` values is refused without parsing, which
    would block the event loop.
    """
    if count_values(body) > most_values:
        raise too_many_values(body, model, most_values)
    return checked(parse_json(body), model)


def count_values(text: bytes) -> int:
    """Return the number of commas and opening brackets, which is about the number of values.

    Those inside strings count too, so the result may be too high.
    """
    return text.count(b",") + text.count(b"[") + text.count(b"{")


def parse_json(body: bytes) -> Any:
    """Return the value of a JSON text. Raises InvalidRequestError, also for a duplicate name."""
    try:
        return jiter.from_json(body, allow_inf_nan=False, catch_duplicate_keys=True)
    except ValueError as error:
        raise InvalidRequestError([FieldError(field="body", detail=_json_fault(error))]) from None


def checked(value: object, model: type[Model], most: int = MOST_ERRORS) -> Model:
    """Return a parsed value as a model. Raises InvalidRequestError.

    Unknown members beyond the first `most` are removed before, and only counted.
    """
    more = 0
    # pydantic makes an error for each unknown member. Unbounded, a body of 0.9 MB gave a response
    # of 10 MB and blocked the event loop for a second.
    if isinstance(value, dict) and (len(value) > most or dict in map(type, value.values())):
        value, more = _without_surplus(value, model, most)
    try:
        # `model_validate` only passes its options on, which costs a third of the validation.
        instance: Model = model.__pydantic_validator__.validate_python(value)
    except ValidationError as error:
        raise InvalidRequestError.of(error, more) from None
    return instance


def _without_surplus(value: object, model: type[BaseModel], most: int) -> tuple[object, int]:
    """Return an object with at most `most` unknown members, and the number of those removed.

    Nested models are treated alike. The number is 0 for a model that ignores unknown members.
    """
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
    """Return the error for a body with more than `most` values, which is not parsed as a whole.

    If its first 4,096 bytes are an object with many unknown names, the first errors are listed and
    the others estimated by the number of commas.
    """
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
    """Return the kind of a parser's error. The parser's own message may quote the body."""
    if "duplicate key" in str(error).lower():
        return "a name stands twice in one object"
    return "it is not JSON"


def _too_large(limit: int) -> RequestError:
    return RequestError("body-too-large", f"A body here has at most {limit} bytes.")


def read_idempotency_key(headers: Headers) -> str | None:
    """Return the Idempotency-Key, or None without one. Raises InvalidRequestError."""
    keys = headers.getlist(IDEMPOTENCY_HEADER)
    if not keys:
        return None
    key = keys[0]
    visible = all("!" <= character <= "~" for character in key)
    if len(keys) > 1 or not 1 <= len(key) <= _MAX_KEY_CHARACTERS or not visible:
        raise InvalidRequestError(
            [
                FieldError(
                    field=IDEMPOTENCY_HEADER,
                    detail="it must occur once and"
                    f" have 1 to {_MAX_KEY_CHARACTERS} visible ASCII characters",
                )
            ]
        )
    return key
