"""Assert the form that every error response of the API has (RFC 9457)."""

import re
from typing import Any

import httpx2

MEDIA_TYPE = "application/problem+json"

_INTERNALS = re.compile(
    r"Traceback|\bSELECT\b|\bINSERT\b|\bUPDATE\b|\bDELETE FROM\b|sqlalchemy|psycopg|sqlite3?\b"
    r"|pydantic|starlette|uvicorn|\b[A-Z]\w+(Error|Exception)\b|\.py\b|/(work|usr|home|tmp|root)/"
    r"|postgres(ql)?://|site-packages|object at 0x|birthmark_sma",
    re.IGNORECASE,
)


def assert_tells_no_internals(text: str) -> None:
    """Assert that a text contains no SQL, path, exception or library name."""
    found = _INTERNALS.search(text)
    assert found is None, f"{found.group()!r} in {text}"


def assert_problem(response: httpx2.Response, status: int) -> dict[str, Any]:
    """Assert that a response is a complete problem document of this status, and return it."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == MEDIA_TYPE
    document: dict[str, Any] = response.json()
    assert {"type", "title", "status", "detail", "instance", "request_id"} <= document.keys()
    assert re.fullmatch(r"urn:birthmark:problem:[a-z0-9-]+", document["type"])
    assert document["status"] == status
    assert document["title"]
    assert document["detail"].endswith((".", "!", "?")), "the detail is a sentence"
    assert document["instance"] == response.request.url.path
    assert ("errors" in document) == (status == 422)
    for entry in document.get("errors", []):
        assert entry.keys() == {"field", "detail"}
        assert entry["field"]
        assert entry["detail"]
    if status == 503:
        assert int(response.headers["retry-after"]) >= 1
    without_echo = {
        name: value for name, value in document.items() if name not in {"instance", "request_id"}
    }
    assert_tells_no_internals(str(without_echo))
    return document


def fields_of(document: dict[str, Any]) -> set[str]:
    """Return the names of the fields in the errors of a 422."""
    return {entry["field"] for entry in document["errors"]}
