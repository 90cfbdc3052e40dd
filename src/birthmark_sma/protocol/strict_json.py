"""JSON with one meaning: each name once, no NaN, and errors of one kind (RFC 8259)."""

import json
from typing import Any, NoReturn


def parse_json(text: bytes) -> object:
    """Parse JSON in UTF-8. Raises ValueError for anything that two parsers might read two ways."""
    try:
        return json.loads(
            text.decode("utf-8"), object_pairs_hook=_once_each, parse_constant=_no_constant
        )
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError("a name stands twice")
    return fields


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")
