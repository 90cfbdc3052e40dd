"""Read a batch of camera tokens so that other requests do not wait for it.

The parser holds the event loop until it is done, and makes an object of every value. A batch with
more values than a thousand camera tokens need is therefore not parsed as a whole: its members and
elements are found first, a few thousand characters of its structure at a time.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Sequence
from typing import Any

from birthmark_sma.protocol.camera_token import CameraToken
from birthmark_sma.web.api.models import (
    MOST_TOKENS,
    FieldError,
    ValidateBatchRequest,
    ValidateNucRequest,
)
from birthmark_sma.web.middleware.request_body import (
    MOST_VALUES,
    checked,
    count_values,
    parse,
    parse_json,
    too_many_values,
)
from birthmark_sma.web.problems import MOST_ERRORS, InvalidRequestError

_VALUES_AT_ONCE = 12_000
_MARKS_AT_ONCE = 1_000
_ELEMENTS_AT_ONCE = 20
_ERRORS_OF_AN_ELEMENT = 4
_TOKENS = b'"tokens"'
_DEPTH = 200  # as deep as the parser goes
_OPENING, _CLOSING = (b"[", b"{"), (b"]", b"}")
_MARK = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[\[\]{},]', re.DOTALL)


async def parse_batch(body: bytes) -> Sequence[Any]:
    """Return the elements of a batch, whatever they are; bytes is one that is not parsed yet.

    Raises InvalidRequestError.
    """
    if count_values(body) <= _VALUES_AT_ONCE:
        return parse(body, ValidateBatchRequest, _VALUES_AT_ONCE).tokens
    outline = await _Outline.of(body)
    try:
        checked(outline.skeleton(), ValidateBatchRequest)
    except InvalidRequestError as error:
        raise InvalidRequestError(error.fields, error.more + outline.surplus) from None
    elements = outline.elements or []
    # What stands around the elements is read as strictly as that of a small batch.
    parse_json(body[: elements[0][0]] + body[elements[-1][1] :])
    return [body[start:end] for start, end in elements]


async def parse_elements(tokens: Sequence[Any]) -> AsyncIterator[CameraToken | str]:
    """Yield each camera token, or what is wrong with it; others get their turn in between."""
    for place, value in enumerate(tokens):
        if place % _ELEMENTS_AT_ONCE == _ELEMENTS_AT_ONCE - 1:
            await asyncio.sleep(0)
        try:
            yield _element_of(value).camera_token()
        except InvalidRequestError as error:
            yield error.summary(_ERRORS_OF_AN_ELEMENT)


def _element_of(value: Any) -> ValidateNucRequest:
    if isinstance(value, bytes):
        if count_values(value) > MOST_VALUES:
            raise too_many_values(value, ValidateNucRequest, MOST_VALUES)
        value = parse_json(value)
    return checked(value, ValidateNucRequest, _ERRORS_OF_AN_ELEMENT)


class _Outline:
    """The members of an object, and the places of the elements of `tokens` in its text."""

    def __init__(self, body: bytes) -> None:
        self._body = body
        self.elements: list[tuple[int, int]] | None = None
        self.surplus = 0
        """The number of members that `skeleton` leaves out."""
        self._names: list[bytes] = []
        self._last_name = b""
        self._depth = 0
        self._name_expected = False
        self._start: int | None = None  # of the element under way, inside `tokens`

    @classmethod
    async def of(cls, body: bytes) -> "_Outline":
        """Read a body; others get their turn in between. Raises InvalidRequestError."""
        outline = cls(body)
        if not body.lstrip().startswith(b"{"):
            raise _malformed("it is not a JSON object")
        for number, mark in enumerate(_MARK.finditer(body)):
            if number % _MARKS_AT_ONCE == _MARKS_AT_ONCE - 1:
                await asyncio.sleep(0)
            outline._note(mark[0], mark.start(), mark.end())
        if outline._depth:
            raise _malformed("it is not JSON")
        return outline

    def skeleton(self) -> dict[str, Any]:
        """Return the object with its first members, and nothing in them."""
        names = dict.fromkeys(name[1:-1].decode("utf-8", "replace") for name in self._names)
        if self.elements is not None:
            names["tokens"] = [None] * len(self.elements)
        return names

    def _note(self, sign: bytes, start: int, end: int) -> None:
        if sign in _OPENING:
            self._depth += 1
            if self._depth > _DEPTH:
                raise _malformed("it is not JSON")
            self._name_expected = self._depth == 1
            if self._depth == 2 and sign == b"[" and self._last_name == _TOKENS:
                self.elements = []
                self._start = end
        elif sign in _CLOSING:
            if self._depth == 2 and self._start is not None:
                if self.elements or self._body[self._start : start].strip():
                    self._end_element(start)
                self._start = None
            self._depth -= 1
        elif sign == b",":
            self._name_expected = self._depth == 1
            if self._depth == 2 and self._start is not None:
                self._end_element(start)
                self._start = end
        elif self._name_expected:
            self._name_expected = False
            self._note_name(sign)

    def _note_name(self, name: bytes) -> None:
        if name == _TOKENS and name in self._names:
            raise _malformed("a name stands twice in one object")
        self._last_name = name
        if name == _TOKENS or len(self._names) <= MOST_ERRORS:
            self._names.append(name)
        else:
            self.surplus += 1

    def _end_element(self, end: int) -> None:
        assert self.elements is not None  # noqa: S101  one began
        assert self._start is not None  # noqa: S101
        self.elements.append((self._start, end))
        if len(self.elements) > MOST_TOKENS:
            detail = f"list should have at most {MOST_TOKENS} items"
            raise InvalidRequestError([FieldError(field="tokens", detail=detail)])


def _malformed(detail: str) -> InvalidRequestError:
    return InvalidRequestError([FieldError(field="body", detail=detail)])
