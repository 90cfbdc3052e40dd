"""Parse a batch of camera tokens without blocking the event loop for long.

`web.api.validate_batch` calls `parse_batch`, then `parse_elements`. The JSON parser blocks the
event loop until it is done, and makes an object of every value. So a batch with more values than
1,000 camera tokens need is never parsed as a whole: this module first finds the places of its
elements, 1,000 structural marks at a time, and then parses each element by itself.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Sequence
from typing import Any

from birthmark_sma.protocol.camera_token import CameraToken
from birthmark_sma.web.api.models.validation import (
    MOST_TOKENS,
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
from birthmark_sma.web.problems import MOST_ERRORS, FieldError, InvalidRequestError

# The most values (as `count_values` counts them) of a body that is parsed as a whole. 1,000 camera
# tokens have about 5,000.
_VALUES_AT_ONCE = 12_000
# After so many marks or elements, other requests get their turn.
_MARKS_AT_ONCE = 1_000
_ELEMENTS_AT_ONCE = 20
_ERRORS_OF_AN_ELEMENT = 4  # in the message of one malformed element
_TOKENS = b'"tokens"'
_DEPTH = 200  # the JSON parser's own limit of nesting
_OPENING, _CLOSING = (b"[", b"{"), (b"]", b"}")
# A string, or one structural character. The possessive quantifiers (*+) never backtrack, so the
# time is linear in the length of the body.
_MARK = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[\[\]{},]', re.DOTALL)


async def parse_batch(body: bytes) -> Sequence[Any]:
    """Return the elements of a batch. An element may be any JSON value.

    The elements of a large batch are bytes: JSON texts that are not parsed yet. Raises
    InvalidRequestError if the body is not an object with a list `tokens` of 1 to 1,000 elements.
    """
    if count_values(body) <= _VALUES_AT_ONCE:
        return parse(body, ValidateBatchRequest, _VALUES_AT_ONCE).tokens
    outline = await _Outline.of(body)
    try:
        checked(outline.skeleton(), ValidateBatchRequest)
    except InvalidRequestError as error:
        raise InvalidRequestError(error.fields, error.more + outline.surplus) from None
    elements = outline.elements or []
    # The text around the elements is parsed as strictly as in a small batch.
    parse_json(body[: elements[0][0]] + body[elements[-1][1] :])
    return [body[start:end] for start, end in elements]


async def parse_elements(tokens: Sequence[Any]) -> AsyncIterator[CameraToken | str]:
    """Yield each camera token in order, or an error message for a malformed element.

    Other requests get their turn after every 20 elements.
    """
    for place, value in enumerate(tokens):
        if place % _ELEMENTS_AT_ONCE == _ELEMENTS_AT_ONCE - 1:
            await asyncio.sleep(0)  # lets other requests run
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
    """The member names of a JSON object, and the places of the elements of its `tokens`.

    It reads the structure alone. Values inside the elements are not checked here.
    """

    def __init__(self, body: bytes) -> None:
        self._body = body
        self.elements: list[tuple[int, int]] | None = None
        """The start and end of each element in the body; None without a list `tokens`."""
        self.surplus = 0
        """The number of members that `skeleton` leaves out: errors for them are only counted."""
        self._names: list[bytes] = []
        self._last_name = b""
        self._depth = 0
        self._name_expected = False
        self._start: int | None = None  # of the element being read; None outside `tokens`

    @classmethod
    async def of(cls, body: bytes) -> "_Outline":
        """Return the outline of a body. Other requests get their turn after every 1,000 marks.

        Raises InvalidRequestError if the body is no JSON object, has `tokens` twice, or has more
        than 1,000 tokens.
        """
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
        """Return the object with its first members and empty values.

        `tokens` has the right number of elements, all None. This is enough to check the names and
        the length of the list with ValidateBatchRequest.
        """
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
        # More names than a problem document lists are not kept, so that they fill no memory.
        if name == _TOKENS or len(self._names) <= MOST_ERRORS:
            self._names.append(name)
        else:
            self.surplus += 1

    def _end_element(self, end: int) -> None:
        assert self.elements is not None  # noqa: S101  set where `tokens` began
        assert self._start is not None  # noqa: S101
        self.elements.append((self._start, end))
        # Checked here and not at the end, so that an endless list is refused early.
        if len(self.elements) > MOST_TOKENS:
            detail = f"list should have at most {MOST_TOKENS} items"
            raise InvalidRequestError([FieldError(field="tokens", detail=detail)])


def _malformed(detail: str) -> InvalidRequestError:
    return InvalidRequestError([FieldError(field="body", detail=detail)])
