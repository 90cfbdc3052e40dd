"""Format types, signatures and values as text that does not depend on a module's path."""

import enum
import inspect
import re
from collections.abc import Mapping
from dataclasses import is_dataclass
from typing import Any

_QUOTED_OR_PREFIX = re.compile(r"""('[^']*'|"[^"]*")|(?:\b[A-Za-z_]\w*\.)+(?=[A-Za-z_])""")
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")


def format_type(annotation: object) -> str:
    """Return an annotation as text, without the module paths of its names."""
    raw = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    text = _QUOTED_OR_PREFIX.sub(lambda found: found.group(1) or "", raw)
    return "None" if text == "NoneType" else text


def format_value(value: object) -> str:
    """Return a default or a constant as text, without memory addresses."""
    if isinstance(value, enum.Enum):
        return f"{type(value).__name__}.{value.name}"
    if isinstance(value, type):
        return value.__name__
    if callable(value) and not is_dataclass(value):
        return "<a function>"  # the function's name is internal and may change
    return _ADDRESS.sub("", repr(value))


def format_signature(called: Any) -> str | None:
    """Return the signature of a function or class as text, or None if it has none."""
    try:
        signature = inspect.signature(called)
    except (TypeError, ValueError):
        return None
    parts = []
    kinds = [parameter.kind for parameter in signature.parameters.values()]
    for number, parameter in enumerate(signature.parameters.values()):
        before = kinds[number - 1] if number else None
        if parameter.kind is parameter.KEYWORD_ONLY and before not in {
            parameter.KEYWORD_ONLY,
            parameter.VAR_POSITIONAL,
        }:
            parts.append("*")
        parts.append(_format_parameter(parameter))
        after = kinds[number + 1] if number + 1 < len(kinds) else None
        if parameter.kind is parameter.POSITIONAL_ONLY and after is not parameter.POSITIONAL_ONLY:
            parts.append("/")
    returned = signature.return_annotation
    arrow = "" if returned is signature.empty else f" -> {format_type(returned)}"
    return f"({', '.join(parts)}){arrow}"


def _format_parameter(parameter: inspect.Parameter) -> str:
    text: str = parameter.name
    if parameter.kind is parameter.VAR_POSITIONAL:
        text = f"*{text}"
    if parameter.kind is parameter.VAR_KEYWORD:
        text = f"**{text}"
    if parameter.annotation is not parameter.empty:
        text += f": {format_type(parameter.annotation)}"
    if parameter.default is not parameter.empty:
        text += f" = {format_value(parameter.default)}"
    return text


def find_shape(value: Any) -> Any:
    """Return a JSON value with types in place of values.

    Keys that are numbers become one key. A list keeps one element of each shape.
    """
    if isinstance(value, Mapping):
        shaped = {
            "<number>" if str(name).isdigit() else str(name): find_shape(inner)
            for name, inner in value.items()
        }
        return dict(sorted(shaped.items()))
    if isinstance(value, list):
        shapes: list[Any] = []
        for each in value:
            shape = find_shape(each)
            if shape not in shapes:
                shapes.append(shape)
        return shapes
    return "null" if value is None else type(value).__name__


def leave_out_empty(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return an entry without members that are None, False or empty, to keep the files short."""
    return {
        name: value
        for name, value in entry.items()
        if value is not None and value is not False and value not in ([], {}, "")
    }
