"""Collect the problem types (RFC 9457): the problem document of each error."""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from checks.public_surface import places
from checks.public_surface.python_names import list_errors, make_error
from checks.public_surface.text import leave_out_empty

_MEMBERS = frozenset({"type", "title", "status", "detail", "instance", "request_id"})


def collect_problems() -> dict[str, Any]:
    """Return each problem type with titles and statuses, and the problem of each error."""
    by_error = {name: _describe(error) for name, error in _list_all_errors().items()}
    types: dict[str, set[str]] = {}
    for each in by_error.values():
        types.setdefault(each["type"], set()).add(f"{each['status']} {each['title']}")
    for each in places.list_connection_problems():
        name = f"urn:birthmark:problem:{each['slug']}"
        types.setdefault(name, set()).add(f"{each['status']} {each['title']}")
    internal = [name for name, each in by_error.items() if each["status"] == 500]
    return {
        "types": {name: sorted(meanings) for name, meanings in types.items()},
        "by_error": {name: each for name, each in by_error.items() if name not in internal},
        "internal errors": sorted(internal),
    }


def collect_details() -> dict[str, str]:
    """Return the constant details: those of errors that have a message without arguments."""
    details = {}
    for name, error in _list_all_errors().items():
        if str(error) not in {"", "x"}:
            details[name] = _respond(error)["detail"]
    for each in places.list_connection_problems():
        details[f"connection: {each['slug']}"] = each["detail"]
    return details


def _list_all_errors() -> dict[str, Exception]:
    ours: dict[str, Exception] = {name: make_error(each) for name, each in list_errors().items()}
    return ours | {f"({name})": each for name, each in places.make_request_errors().items()}


def _describe(error: Exception) -> dict[str, Any]:
    with _quiet():
        response = places.respond_to(error)
    document = json.loads(bytes(response.body))
    headers = sorted(set(response.headers) - {"content-length", "content-type"})
    return leave_out_empty(
        {
            "type": document["type"],
            "title": document["title"],
            "status": document["status"],
            "other_members": sorted(document.keys() - _MEMBERS),
            "left_out_members": sorted(_MEMBERS - document.keys()),
            "fields": [each["field"] for each in document.get("errors", [])],
            "headers": {name: _value(name, response.headers[name]) for name in headers},
            "media_type": response.headers["content-type"],
        }
    )


def _value(name: str, value: str) -> str:
    """Return the value of a header field; for Retry-After, which is random, that it is a number."""
    return "seconds" if name == "retry-after" and value.isdigit() else value


def _respond(error: Exception) -> dict[str, Any]:
    with _quiet():
        document: dict[str, Any] = json.loads(bytes(places.respond_to(error).body))
    return document


@contextmanager
def _quiet() -> Iterator[None]:
    """Disable logging, so that these errors do not appear in the output."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)
