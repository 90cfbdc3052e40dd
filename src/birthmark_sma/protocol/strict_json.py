"""JSON with one meaning (RFC 8259), and errors of one kind.

Each name stands once. There is no NaN, no -0, which some parsers keep apart from 0, and no half of
a surrogate pair, which no file or terminal takes.
"""

import json
from typing import Any, NoReturn


def parse_json(text: bytes) -> object:
    """Parse JSON in UTF-8. Raises ValueError for anything that two parsers might read two ways."""
    try:
        value = json.loads(
            text.decode("utf-8"),
            object_pairs_hook=_once_each,
            parse_constant=_no_constant,
            parse_int=_integer,
        )
        if b"\\u" in text:  # no other way leads to half of a pair
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except RecursionError:
        raise ValueError("nested too deeply") from None
    return value


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError("a name stands twice")
    return fields


def _integer(digits: str) -> int:
    if digits == "-0":
        raise ValueError("-0 is no integer")
    return int(digits)


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")
