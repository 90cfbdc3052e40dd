"""Separate the prose of JSON Schema and OpenAPI from the parts that programs rely on."""

from collections.abc import Iterator
from typing import Any

PROSE = frozenset({"title", "description", "summary", "example", "examples"})
_NAME_MAPS = frozenset(
    {
        *("properties", "patternProperties", "$defs", "schemas", "securitySchemes", "paths"),
        *("responses", "headers", "content", "mapping", "parameters", "links", "callbacks"),
    }
)
"""Keywords whose value maps names that the author chose. There `title` is a name, not a keyword."""


def without_prose(value: Any, *, names: bool = False) -> Any:
    """Return a schema or document without titles, descriptions, summaries and examples.

    `names` says that the keys of `value` are names and not keywords.
    """
    if isinstance(value, dict):
        return {
            name: without_prose(inner, names=not names and name in _NAME_MAPS)
            for name, inner in value.items()
            if names or name not in PROSE
        }
    if isinstance(value, list):
        return [without_prose(each) for each in value]
    return value


def inline(schema: Any, types: Any) -> Any:
    """Return a schema with each reference replaced by its definition from `types`.

    So the name of a class is not part of the recorded format.
    """
    if isinstance(schema, dict):
        if "$ref" in schema:
            return inline(without_prose(types[schema["$ref"].rpartition("/")[2]]), types)
        return {name: inline(each, types) for name, each in schema.items() if name != "$defs"}
    return [inline(each, types) for each in schema] if isinstance(schema, list) else schema


def find_prose(
    value: Any, path: tuple[str, ...] = (), *, names: bool = False
) -> Iterator[tuple[str, Any]]:
    """Yield each title, description, summary and example with its path."""
    if isinstance(value, dict):
        for name, inner in value.items():
            if not names and name in PROSE:
                yield " > ".join((*path, name)), inner
            else:
                yield from find_prose(inner, (*path, name), names=not names and name in _NAME_MAPS)
    elif isinstance(value, list):
        for number, each in enumerate(value):
            yield from find_prose(each, (*path, str(number)))
