"""Collect the Python names that other programs import, and the tree of error classes."""

import ast
import dataclasses
import enum
import inspect
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from checks.public_surface import places
from checks.public_surface.text import format_signature, format_type, format_value, leave_out_empty

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "birthmark_sma"
PUBLIC_PACKAGES = (PACKAGE, f"{PACKAGE}.client", f"{PACKAGE}.device")

_CODE_BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
_SPECIAL_METHODS = frozenset(
    {
        *("__aenter__", "__aexit__", "__aiter__", "__anext__", "__await__", "__bool__"),
        *("__call__", "__contains__", "__enter__", "__exit__", "__getitem__", "__iter__"),
        *("__len__", "__next__"),
    }
)
_PLAIN = (str, int, float, bool, bytes, tuple, frozenset)


def collect_python_names() -> dict[str, Any]:
    """Return the exported names of the public packages, and those that documents import."""
    exported = {}
    for package in PUBLIC_PACKAGES:
        module = import_module(package)
        names = getattr(module, "__all__", ["__version__"])
        exported[package] = {name: _describe_export(module, name) for name in sorted(names)}
    documented: dict[str, dict[str, Any]] = {}
    for module_name, name in sorted(set(_find_documented_imports())):
        if module_name not in PUBLIC_PACKAGES:
            found = getattr(import_module(module_name), name)
            documented.setdefault(module_name, {})[name] = describe(found)
    return {"exported": exported, "imported in documents and examples": documented}


def collect_errors() -> dict[str, Any]:
    """Return bases, signature, attributes, methods and exit code of every class of errors/."""
    found = {}
    for name, error in list_errors().items():
        made = make_error(error)
        found[name] = leave_out_empty(
            {
                "bases": [base.__name__ for base in error.__bases__],
                "call": format_signature(error) if "__init__" in vars(error) else None,
                "attributes": sorted(vars(made)),
                "methods": _describe_members(error),
                "exit_code": places.find_exit_code(made),
            }
        )
    return found


def list_errors() -> dict[str, type[Any]]:
    """Return the error classes by name."""
    module = places.error_module
    return {
        name: each
        for name, each in sorted(vars(module).items())
        if isinstance(each, type) and issubclass(each, module.BirthmarkError)
    }


def make_error(error: type[Any]) -> Any:
    """Return an instance of an error class. Required arguments get made-up values."""
    arguments, named = [], {}
    made_up = {"str": "x", "int": 1, "float": 1.0}
    if any("__init__" in vars(base) for base in error.__mro__ if base.__module__ != "builtins"):
        for parameter in inspect.signature(error).parameters.values():
            if parameter.default is parameter.empty:
                value = made_up.get(format_type(parameter.annotation))
                if parameter.kind is parameter.KEYWORD_ONLY:
                    named[parameter.name] = value
                elif parameter.kind is parameter.POSITIONAL_OR_KEYWORD:
                    arguments.append(value)
    return error(*arguments, **named)


def describe(found: Any) -> Any:
    """Return the public description of a class, a function, a constant or an alias."""
    if isinstance(found, type):
        return _describe_class(found)
    if inspect.isroutine(found):
        return {"function": format_signature(found)}
    if isinstance(found, _PLAIN) or dataclasses.is_dataclass(found):
        return {"constant": format_value(found), "type": type(found).__name__}
    return {"alias": format_type(found)}


def _describe_export(module: Any, name: str) -> Any:
    if name == "__version__":
        return {"type": type(getattr(module, name)).__name__}
    return describe(getattr(module, name))


def _describe_class(found: type) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "bases": [
            base.__name__
            for base in found.__bases__
            if base is not object and not base.__name__.startswith("_")
        ]
    }
    if issubclass(found, enum.Enum):
        entry["values"] = {name: each.value for name, each in found.__members__.items()}
    elif not issubclass(found, BaseException) or "__init__" in vars(found):
        entry["call"] = format_signature(found)
    if dataclasses.is_dataclass(found):
        entry["frozen"] = bool(found.__dataclass_params__.frozen)  # type: ignore[attr-defined]
        entry["fields"] = {each.name: format_type(each.type) for each in dataclasses.fields(found)}
    entry["members"] = _describe_members(found)
    return leave_out_empty(entry)


def _describe_members(found: type) -> dict[str, Any]:
    """Return the public methods, properties and constants from this package's classes.

    Members of base classes of other packages are left out.
    """
    members = {}
    for owner in reversed(found.__mro__):
        if owner.__module__.partition(".")[0] != PACKAGE:
            continue
        for name, member in vars(owner).items():
            if name.startswith("_") and name not in _SPECIAL_METHODS:
                continue
            told = _describe_member(member)
            if told is not None:
                members[name] = told
    return dict(sorted(members.items()))


def _describe_member(member: Any) -> str | None:
    if isinstance(member, property):
        returned = inspect.signature(member.fget).return_annotation if member.fget else None
        return f"property -> {format_type(returned)}"
    for wrapper in (staticmethod, classmethod):
        if isinstance(member, wrapper):
            return f"{wrapper.__name__} {format_signature(member.__func__)}"
    if inspect.isfunction(member):
        begin = "async " if inspect.iscoroutinefunction(member) else ""
        return f"{begin}{format_signature(member)}"
    if isinstance(member, _PLAIN) and not isinstance(member, enum.Enum):
        return format_value(member)
    return None


def _find_documented_imports() -> Iterator[tuple[str, str]]:
    """Yield module and name of each import of this package in README, docs/ and examples/."""
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))):
        for block in _CODE_BLOCK.findall(page.read_text(encoding="utf-8")):
            yield from _find_imports(block)
    for example in sorted((ROOT / "examples").rglob("*.py")):
        yield from _find_imports(example.read_text(encoding="utf-8"))


def _find_imports(code: str) -> Iterator[tuple[str, str]]:
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(PACKAGE):
            yield from ((node.module or "", each.name) for each in node.names)
