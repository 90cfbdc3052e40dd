"""Complete the OpenAPI document that FastAPI generates.

It adds the bodies that endpoints parse themselves, the problem documents of every status, and the
access keys of every path. `app.create_app` calls `install`; the endpoints call `problems`,
`success` and `request_body` in their decorators. Nothing here runs during a request,
except once for the document itself.
"""

from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.routing import BaseRoute

from birthmark_sma.authority.access.store import KeyScope
from birthmark_sma.web.api import examples
from birthmark_sma.web.api.administration.requests import REQUESTS as ADMINISTRATION
from birthmark_sma.web.api.models.provisioning import ProvisionRequest
from birthmark_sma.web.api.models.published import LegacyValidateRequest, PublishedValidateRequest
from birthmark_sma.web.api.models.validation import ValidateBatchRequest, ValidateNucRequest
from birthmark_sma.web.api.renewal.models import RenewRequest
from birthmark_sma.web.problem_documents import MEDIA_TYPE
from birthmark_sma.web.problem_lookup import find_by_slug, find_example
from birthmark_sma.web.problems import (
    InvalidRequestProblem,
    Problem,
    ProblemDocument,
    UnknownAddressProblem,
)
from birthmark_sma.web.routes import ANYONE, ROUTES

DESCRIPTION = """\
A manufacturer's authority for the Birthmark Standard. It certifies cameras, assigns key tables to
them, and validates camera tokens: it tells whether a registered camera made a token.

* A **camera** provisions itself once, and stores the response.
* **Aggregation servers** validate camera tokens. The result is `PASS`, `FAIL` or an error. An
  error is *not* a `FAIL`. Only the status 200 and the two problems with the status 400 carry a
  verdict.
* **Operators** administer devices and access keys. Every change is recorded with the access key.
* The Birthmark project's **published clients** use `POST /validate` and `POST /validate-legacy`, in
  their own formats.

Errors are problem documents (RFC 9457). `detail` says what to do. Other paths get 404, other
methods 405. A request that is not HTTP/1.1, or does not have exactly one Host, gets 400.

The dashboard's session opens `/docs`, but **Try it out** does not use it: enter an access key under
**Authorize** first, unless access is open.
"""

_ANYWHERE = (408, 414, 421, 431, 500, 501, 505)  # any path can answer these
_WITH_A_KEY = (401, 403)  # every path that requires an access key can answer these

_RETRY_AFTER = {
    "Retry-After": {
        "description": "Seconds to wait before the request is repeated",
        "schema": {"type": "integer"},
    }
}

_CHALLENGE = {
    "WWW-Authenticate": {
        "description": "The way to send an access key (RFC 6750)",
        "schema": {"type": "string"},
    }
}

_SCHEMES: dict[str, Any] = {
    "accessKey": {
        "type": "http",
        "scheme": "bearer",
        "description": "An access key, sma_..., as `sma keys create` prints it. It has one scope."
        " The listed roles are the scopes that may use a path. A server on a loopback address asks"
        " for no key unless SMA_ACCESS says so.",
    },
    "clientCertificate": {
        "type": "mutualTLS",
        "description": "A client certificate for which an access key was created.",
    },
}

# FastAPI does not see these models, as the endpoints parse the bodies themselves.
_SELF_PARSED = (
    ValidateNucRequest,
    ValidateBatchRequest,
    PublishedValidateRequest,
    LegacyValidateRequest,
    ProvisionRequest,
    RenewRequest,
    *ADMINISTRATION,
)
_PROBLEMS = (ProblemDocument, InvalidRequestProblem, UnknownAddressProblem)
_REFERENCE = "#/components/schemas/{model}"


def install(app: FastAPI, routers: Sequence[APIRouter]) -> None:
    """Replace `app.openapi` by a function that returns the completed document.

    `routers` are those whose examples are restored (`_restore_examples`).
    """

    def document() -> dict[str, Any]:
        # Made at the first request and kept, as FastAPI does it.
        if app.openapi_schema is None:
            made = get_openapi(
                title=app.title,
                version=app.version,
                description=app.description,
                routes=app.routes,
                tags=app.openapi_tags,
                license_info=app.license_info,
            )
            _, definitions = models_json_schema(
                [(model, "validation") for model in (*_SELF_PARSED, *_PROBLEMS)],
                ref_template=_REFERENCE,
            )
            made["components"]["schemas"] |= definitions["$defs"]
            made["components"]["securitySchemes"] = _SCHEMES
            _name_keys(made)
            _restore_examples(made, [route for router in routers for route in router.routes])
            app.openapi_schema = made
        return app.openapi_schema

    # FastAPI documents this assignment as the way to extend the document.
    app.openapi = document  # type: ignore[method-assign]


def _name_keys(made: dict[str, Any]) -> None:
    """Add to each operation the security schemes and scopes that its path requires."""
    for path, operations in made["paths"].items():
        scopes = ROUTES[path].scopes
        if scopes is None:
            continue
        named = [each.value for each in KeyScope if each in scopes]
        for operation in operations.values():
            # The last alternative means no credential. It is for a server with open access.
            operation["security"] = [{"accessKey": named}, {"clientCertificate": []}, {}]


def _restore_examples(made: dict[str, Any], routes: Sequence[BaseRoute]) -> None:
    """Replace the examples by those of the routes, because FastAPI removes every null."""
    for route in routes:
        if not isinstance(route, APIRoute) or not route.include_in_schema:
            continue
        for method in route.methods or ():
            operation = made["paths"].get(route.path, {}).get(method.lower(), {})
            for status, response in route.responses.items():
                for media_type, content in response.get("content", {}).items():
                    told = operation["responses"][str(status)]["content"][media_type]
                    told |= {k: v for k, v in content.items() if k in {"example", "examples"}}


def problems(instance: str, *statuses: int | str) -> dict[int | str, Any]:
    """Return the OpenAPI responses for the problem documents of a path.

    `instance` is the path, and `statuses` are those that its endpoint raises. Statuses that every
    path has are added. A text is the slug of a problem, which takes the place of its status's usual
    example.
    """
    of_the_door = () if ROUTES[instance].scopes is ANYONE else _WITH_A_KEY
    usual = {status for status in statuses if isinstance(status, int)}
    rows = [find_example(status) for status in sorted({*usual, *_ANYWHERE, *of_the_door})]
    rows += [find_by_slug(slug) for slug in statuses if isinstance(slug, str)]
    return {row.status: _describe(row, instance) for row in rows}


def success(
    model: type[BaseModel], description: str, **examples: object
) -> dict[int | str, dict[str, Any]]:
    """Return the OpenAPI response 200 with examples by name."""
    named = {name: {"value": value} for name, value in examples.items()}
    content = {"application/json": {"examples": named}} if named else {}
    return {200: {"model": model, "description": description, "content": content}}


def request_body(model: type[BaseModel]) -> dict[str, Any]:
    """Return the OpenAPI request body of an endpoint that parses its body itself."""
    return {"required": True, "content": {"application/json": {"schema": _reference(model)}}}


def _reference(model: type[BaseModel]) -> dict[str, str]:
    return {"$ref": _REFERENCE.format(model=model.__name__)}


def _describe(row: Problem, instance: str) -> dict[str, Any]:
    example = {**row.document(row.detail, instance, examples.REQUEST_ID), **(row.members or {})}
    content = {MEDIA_TYPE: {"schema": _reference(row.model), "example": example}}
    described: dict[str, Any] = {"description": row.meaning, "content": content}
    if row.retry:
        described["headers"] = _RETRY_AFTER
    elif row.status == 401:
        described["headers"] = _CHALLENGE
    return described
