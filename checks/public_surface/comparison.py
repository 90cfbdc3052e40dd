"""Compare a recorded surface with the present one, and describe the differences as lines."""

from collections.abc import Iterator
from typing import Any

_MOST_CHARACTERS = 200
_MOST_LINES = 60


def describe_differences(recorded: Any, present: Any) -> list[str]:
    """Return a line for each entry that was added, removed or changed, sorted by path."""
    before, after = dict(_flatten(recorded)), dict(_flatten(present))
    lines = []
    for path in sorted(before.keys() | after.keys()):
        if path not in after:
            lines.append(f"removed: {path} (was {_shorten(before[path])})")
        elif path not in before:
            lines.append(f"added: {path} = {_shorten(after[path])}")
        elif repr(before[path]) != repr(after[path]):
            lines.append(f"changed: {path}: {_describe_change(before[path], after[path])}")
    return lines


def make_message(kind: str, differences: list[str]) -> str:
    """Return the failure message of the test, with up to 60 differences."""
    shown = differences[:_MOST_LINES]
    more = len(differences) - len(shown)
    return "\n".join(
        [
            f"The public surface is not the recorded one: tests/public_surface/{kind}.json",
            *(f"  {line}" for line in shown),
            *([f"  and {more} more"] if more else []),
            "If this change is on purpose, run `make public-surface` and review the diff.",
        ]
    )


def _flatten(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Yield every leaf with its path. Empty containers and lists of scalars are leaves."""
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            yield from _flatten(inner, (*path, str(name)))
    elif isinstance(value, list) and any(isinstance(each, dict | list) for each in value):
        for number, inner in enumerate(value):
            yield from _flatten(inner, (*path, f"[{number}]"))
    elif path or value:
        yield " > ".join(path), value


def _describe_change(before: Any, after: Any) -> str:
    """Return the removed and added elements of a list, or both values if they are no lists."""
    if isinstance(before, list) and isinstance(after, list):
        lost = [each for each in before if each not in after]
        got = [each for each in after if each not in before]
        parts = [
            *([f"without {_shorten(lost)}"] if lost else []),
            *([f"with {_shorten(got)}"] if got else []),
        ]
        return ", ".join(parts) or f"other order: {_shorten(after)}"
    return f"{_shorten(before)} -> {_shorten(after)}"


def _shorten(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _MOST_CHARACTERS else text[:_MOST_CHARACTERS] + "..."
