"""Describe the endpoints of the administration API for the OpenAPI document.

The modules of the endpoints call `described` once, when they are imported.
"""

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel

from birthmark_sma.web.api import openapi
from birthmark_sma.web.api.administration.calls import MOST_ITEMS
from birthmark_sma.web.middleware.request_body import IDEMPOTENCY_PARAMETER
from birthmark_sma.web.routes import Route

_EVERY = (429, 500, 503)
_OF_QUERIES: tuple[int | str, ...] = (422, "unusable-filter")
_OF_BODIES = (408, 413, 415, 422)
_ETAG = {
    "ETag": {
        "description": "The entity tag (RFC 9110, section 8.8.3), for If-Match",
        "schema": {"type": "string"},
    }
}

IF_MATCH: dict[str, Any] = {
    "name": "If-Match",
    "in": "header",
    "required": False,
    "description": "The ETag of the object as the caller read it. If it was changed since: 412",
    "schema": {"type": "string"},
}


def query(name: str, description: str, **schema: Any) -> dict[str, Any]:
    """Return the description of a parameter of the query."""
    return {
        "name": name,
        "in": "query",
        "required": False,
        "description": description,
        "schema": {"type": "string", **schema},
    }


PAGE = (
    query("limit", "The most items of the page: 50", type="integer", minimum=1, maximum=MOST_ITEMS),
    query("cursor", "`next_cursor` of the page before"),
)
"""The parameters of every list."""


def described(
    route: Route,
    summary: str,
    model: type[BaseModel],
    example: object,
    *,
    description: str | None = None,
    of_path: tuple[str, str, object] | None = None,
    parameters: Sequence[dict[str, Any]] = (),
    body: type[BaseModel] | None = None,
    errors: Sequence[int | str] = (),
    tagged: bool = False,
) -> dict[str, Any]:
    """Return the arguments of `add_api_route` for an endpoint.

    `of_path` has the name, the description and an example of the parameter in the path. With `body`
    the request is a POST, which may have an Idempotency-Key. `errors` are statuses, and slugs of
    problems. A `tagged` response has an ETag.
    """
    named = list(parameters)
    if of_path is not None:
        name, meaning, value = of_path
        of_it = {"name": name, "in": "path", "required": True, "description": meaning}
        named.insert(0, of_it | {"schema": {"type": "string"}, "example": value})
    extra: dict[str, Any] = {}
    if body is not None:
        named.append(IDEMPOTENCY_PARAMETER)
        extra["requestBody"] = openapi.request_body(body)
    if named:
        extra["parameters"] = named
    success = openapi.success(model, "Done" if body else "Found", example=example)
    if tagged:
        success[200]["headers"] = _ETAG
    usual = (*_EVERY, *(_OF_BODIES if body else _OF_QUERIES))
    return {
        "path": route.path,
        "summary": summary,
        "description": description,
        "response_model": None,
        "responses": {**success, **openapi.problems(route.path, *usual, *errors)},
        "openapi_extra": extra,
        "methods": ["POST" if body else "GET"],
    }
