"""Define the format of a file of vectors, which is that of Project Wycheproof.

A file has notes (the meaning of its flags) and groups. A group has the fields that its tests share.
A test has a number, a comment, flags and a result:

* `valid`: must be accepted;
* `invalid`: must be refused;
* `acceptable`: may be accepted or refused. If it is accepted, the result is that of the test.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Result = Literal["valid", "invalid", "acceptable"]

GENERATOR_VERSION = "1"


@dataclass(frozen=True)
class Case:
    """One test. Each file has other `fields`."""

    comment: str
    result: Result
    fields: Mapping[str, Any]
    flags: tuple[str, ...] = ()


def refused(fields: str, cases: Iterable[tuple[str, str, Any]]) -> list[Case]:
    """Return invalid cases from comments, flags and values. The values have the name `fields`."""
    return [Case(comment, "invalid", {fields: value}, (flag,)) for comment, flag, value in cases]


@dataclass(frozen=True)
class Group:
    """Tests with common fields."""

    kind: str
    tests: list[Case]
    shared: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Document:
    """A whole file. `notes` explain the flags."""

    algorithm: str
    schema: str
    header: list[str]
    notes: Mapping[str, str]
    groups: list[Group]

    def to_json(self) -> bytes:
        """Number the tests and return the file as JSON. Raises ValueError for wrong notes."""
        numbers = iter(range(1, 1_000_000))
        used = {flag for group in self.groups for test in group.tests for flag in test.flags}
        if used != self.notes.keys():
            raise ValueError(f"flags without a note, or the reverse: {used ^ self.notes.keys()}")
        return as_json(
            {
                "algorithm": self.algorithm,
                "schema": self.schema,
                "generatorVersion": GENERATOR_VERSION,
                "numberOfTests": sum(len(group.tests) for group in self.groups),
                "header": self.header,
                "notes": {name: {"description": self.notes[name]} for name in sorted(self.notes)},
                "testGroups": [_group(group, numbers) for group in self.groups],
            }
        )


def _group(group: Group, numbers: Iterator[int]) -> dict[str, Any]:
    tests = [
        {
            "tcId": next(numbers),
            "comment": test.comment,
            "flags": list(test.flags),
            **test.fields,
            "result": test.result,
        }
        for test in group.tests
    ]
    return {"type": group.kind, **group.shared, "tests": tests}


def as_json(value: Any) -> bytes:
    """Return JSON in ASCII, indented by two spaces, with a line end."""
    return (json.dumps(value, indent=2, ensure_ascii=True) + "\n").encode("ascii")
