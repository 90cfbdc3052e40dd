"""Parse query parameters and the fields of forms, for pages and for the administration API.

It must never ignore an invalid value: each one raises RequestError. An empty value counts as
absent.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from enum import StrEnum
from string import hexdigits
from typing import TypeAlias, TypeVar
from urllib.parse import urlencode

from starlette.datastructures import QueryParams
from starlette.requests import Request

from birthmark_sma.protocol.camera_token import DIGEST_BYTES
from birthmark_sma.web.problems import RequestError

Choice = TypeVar("Choice", bound=StrEnum)
Source: TypeAlias = Request | QueryParams
"""A request, for its query, or the fields of a form."""

_MOST_CHARACTERS = 128
_MOST_INTEGER = 2**31 - 1  # the greatest INTEGER of PostgreSQL


def refused(detail: str) -> RequestError:
    """Return the RequestError of an invalid filter. `detail` tells the user the valid values."""
    return RequestError("unusable-filter", detail)


def parse_text(source: Source, name: str) -> str | None:
    """Return a text without surrounding whitespace, or None if it is empty.

    Raises RequestError if it is longer than 128 characters or not printable.
    """
    return _printable(name, _fields(source).get(name, "").strip())


def parse_name(source: Source, name: str) -> str | None:
    """Return a name unchanged, or None if it is blank.

    Surrounding spaces are kept, because a device serial may have them. Raises RequestError as
    `parse_text` does.
    """
    value = _fields(source).get(name, "")
    return _printable(name, value if value.strip() else "")


def parse_names(source: Source, name: str) -> list[str]:
    """Return all names of a field that may occur several times. Raises RequestError."""
    values = (_printable(name, value) for value in _fields(source).getlist(name))
    return [each for each in values if each is not None]


def _fields(source: Source) -> QueryParams:
    return source.query_params if isinstance(source, Request) else source


def _printable(name: str, value: str) -> str | None:
    if len(value) > _MOST_CHARACTERS or not value.isprintable():
        raise refused(f"{name} has at most {_MOST_CHARACTERS} printable characters.")
    return value or None


def parse_choice(source: Source, name: str, kind: type[Choice]) -> Choice | None:
    """Return a member of an enum, or None. Raises RequestError for any other value."""
    value = parse_text(source, name)
    if value is None:
        return None
    try:
        return kind(value)
    except ValueError:
        known = ", ".join(each.value for each in kind)
        raise refused(f"{name} is one of {known}.") from None


def parse_number(source: Source, name: str) -> int | None:
    """Return a whole number from 0 to 2**31 - 1, or None. Raises RequestError."""
    value = parse_text(source, name)
    if value is None:
        return None
    if not (value.isascii() and value.isdigit() and int(value) <= _MOST_INTEGER):
        raise refused(f"{name} is a whole number.")
    return int(value)


def parse_digest(source: Source, name: str) -> bytes | None:
    """Return the digest of a camera token, or None. Raises RequestError unless it is 32 hex digits.

    Pairs of digits may be separated by colons, as certificates show them.
    """
    value = parse_text(source, name)
    if value is None:
        return None
    digits = value.replace(":", "")
    if len(digits) != 2 * DIGEST_BYTES or not set(digits) <= set(hexdigits):
        raise refused(f"{name} has {2 * DIGEST_BYTES} hex digits.")
    return bytes.fromhex(digits)


def parse_time(source: Source, name: str) -> datetime | None:
    """Return an ISO 8601 time in UTC, or None. Without a zone it counts as UTC.

    Raises RequestError.
    """
    value = parse_text(source, name)
    if value is None:
        return None
    try:
        moment = datetime.fromisoformat(value)
        return (moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment).astimezone(UTC)
    except (ValueError, OverflowError):
        raise refused(f"{name} is a time as 2026-11-23T09:00, in UTC.") from None


def link(path: str, query: Mapping[str, object]) -> str:
    """Return the URL of a path and query parameters. Parameters that are None are left out."""
    given = {name: value for name, value in query.items() if value is not None}
    return f"{path}?{urlencode(given)}" if given else path


def as_field(moment: datetime | None) -> str | None:
    """Format a UTC time without its zone, as an HTML datetime-local field has it."""
    return None if moment is None else moment.replace(tzinfo=None).isoformat()
