"""Parse JSON (RFC 8259) strictly: refuse every text that two parsers could read differently.

Refused are duplicate names, NaN and infinities, -0 (some parsers distinguish it from 0), and lone
surrogates (they cannot be encoded as UTF-8). Every error is a ValueError.
"""

import json
from typing import Any, NoReturn


def parse_json(text: bytes) -> object:
    """Parse JSON in UTF-8.

    Raises ValueError for a text that is ambiguous, malformed or nested too deeply.
    """
    try:
        value = json.loads(
            text.decode("utf-8"),
            object_pairs_hook=_once_each,
            parse_constant=_no_constant,
            parse_int=_integer,
        )
        # Only a \u escape can produce a lone surrogate: UTF-8 itself cannot encode one.
        if b"\\u" in text:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except RecursionError:
        raise ValueError("nested too deeply") from None
    return value


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError("a name occurs twice")
    return fields


def _integer(digits: str) -> int:
    if digits == "-0":
        raise ValueError("-0 is not accepted as an integer")
    return int(digits)


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
