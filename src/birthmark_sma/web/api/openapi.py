"""Complete the OpenAPI document that FastAPI generates.

It adds the bodies that endpoints parse themselves, the problem documents of every status, and the
access keys of every path. `app.create_app` calls `install`; the endpoints call `problems`,
`replayed`, `success` and `request_body` in their decorators. Nothing here runs during a request,
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

from birthmark_sma.web.api import examples, models
from birthmark_sma.web.problems import MEDIA_TYPE
from birthmark_sma.web.routes import ANYONE, ROUTES

DESCRIPTION = """\
A manufacturer's authority for the Birthmark Standard: it certifies cameras,
hands out key tables, and says of a camera token whether a registered camera made it.

* **Cameras** provision themselves once, and keep what they get.
* **Aggregation servers** have camera tokens validated: `PASS`, `FAIL`, or an error, which is *not*
  a `FAIL`. Only a 200 and the two 400s of an unknown address carry a verdict.
* The Birthmark project's **published clients** find `POST /validate` and `POST /validate-legacy` in
  the forms that they know.

Errors are problem documents (RFC 9457); `detail` says what to do. Besides those listed below there
are 404 and 405 for other paths and methods, and 400 for what is not HTTP/1.1 or has not exactly one
Host.
"""

_ANYWHERE = (408, 414, 421, 431, 500, 501, 505)  # any path can answer these
_WITH_A_KEY = (401, 403)  # every path that requires an access key can answer these

_TITLES = {
    400: "Unknown table or key index: FAIL, and recorded",
    404: "The root's key has signed no list here yet",
    408: "The request did not arrive whole in time",
    401: "No access key was shown, or none that is in force",
    403: "The access key is good for something else",
    409: "The serial, the public key or the NUC hash is registered already",
    410: "Not supported: nothing was read, and nothing was decided",
    413: "The body is too large",
    414: "The request line is too long",
    415: "The body is not JSON by its Content-Type, or is compressed",
    422: "The request is malformed, or a key in it is refused",
    421: "Access is open, and the name in Host is none of this server's",
    429: "The caller's rate limit is reached: no verdict, and nothing was done; try again after"
    " Retry-After",
    431: "The header fields are too large or too many",
    500: "A fault inside the authority; nothing was decided",
    501: "The body has a transfer coding other than chunked",
    503: "The database is away, or too much work is waiting; try again after Retry-After",
    505: "The request is not in HTTP/1.1 or HTTP/1.0",
}

_EXAMPLES: dict[int, tuple[str, str, str]] = {
    400: ("unknown-table", "Unknown table ID", "Unknown table ID: this authority has no such..."),
    401: ("unauthenticated", "Unauthenticated", "This access key is not known here."),
    403: (
        "insufficient-scope",
        "Insufficient scope",
        "This access key is good for provision; here one for validate is needed.",
    ),
    404: (
        "crl-not-published",
        "Revocation list not published",
        "The root has signed no revocation list yet...",
    ),
    408: ("request-timeout", "Request Timeout", "The request did not arrive whole in time."),
    409: (
        "device-already-provisioned",
        "Device already provisioned",
        "Device already provisioned.",
    ),
    410: (
        "withdrawn",
        "Not supported",
        "This authority does not validate certificate bundles: they would tell it the hash of the"
        " image. Send the camera token to /validate or /validate-legacy.",
    ),
    413: ("body-too-large", "Body too large", "A body here has at most 65536 bytes."),
    414: ("target-too-long", "URI Too Long", "A request line has at most 8192 bytes."),
    415: (
        "unsupported-media-type",
        "Unsupported media type",
        "Send the body as JSON, with Content-Type: application/json.",
    ),
    422: (
        "invalid-request",
        "Invalid request",
        "The request is malformed: nonce: string should have at least 24 characters.",
    ),
    421: (
        "misdirected-request",
        "Misdirected request",
        "This authority answers to localhost and to its address, not to this name...",
    ),
    429: (
        "rate-limited",
        "Too many requests",
        "Too many requests: the limit is 600 in 60 seconds. Try again in 12 seconds.",
    ),
    431: (
        "head-too-large",
        "Request Header Fields Too Large",
        "A head has at most 16384 bytes and 100 fields. Send fewer or shorter ones.",
    ),
    500: ("internal-error", "Internal error", "Something went wrong inside the authority..."),
    501: (
        "transfer-coding",
        "Not Implemented",
        "No transfer coding but chunked is known here. Send a Content-Length, or Transfer-Encoding:"
        " chunked alone.",
    ),
    503: ("database-unavailable", "Database unavailable", "The database does not answer."),
    505: ("http-version", "HTTP Version Not Supported", "Speak HTTP/1.1 or HTTP/1.0 here."),
}

_EXTRA_MEMBERS: dict[int, dict[str, object]] = {
    400: {"validation_result": "FAIL", "error": "Unknown table ID"},
    422: {"errors": [{"field": "nonce", "detail": "string should have at least 24 characters"}]},
}

_MODELS: dict[int, type[BaseModel]] = {
    400: models.UnknownAddressProblem,
    422: models.InvalidRequestProblem,
}


_RETRY_AFTER = {
    "Retry-After": {
        "description": "Seconds to wait before trying again",
        "schema": {"type": "integer"},
    }
}

_HEADERS: dict[int, dict[str, Any]] = {
    401: {
        "WWW-Authenticate": {
            "description": "How to show a key (RFC 6750)",
            "schema": {"type": "string"},
        }
    },
    429: _RETRY_AFTER,
    503: _RETRY_AFTER,
}

_SCHEMES: dict[str, Any] = {
    "accessKey": {
        "type": "http",
        "scheme": "bearer",
        "description": "An access key, sma_..., as `sma keys create` prints it. Roles: the scopes"
        " of which it has one. A server on a loopback address asks for none unless told to.",
    },
    "clientCertificate": {
        "type": "mutualTLS",
        "description": "A client certificate that an access key was made for.",
    },
}

# FastAPI does not see these models, as the endpoints parse the bodies themselves.
_SELF_PARSED = (
    models.ValidateNucRequest,
    models.ValidateBatchRequest,
    models.PublishedValidateRequest,
    models.LegacyValidateRequest,
    models.ProvisionRequest,
)
_PROBLEMS = (models.ProblemDocument, models.InvalidRequestProblem, models.UnknownAddressProblem)
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
        for operation in operations.values():
            # The last alternative means no credential. It is for a server with open access.
            operation["security"] = [{"accessKey": sorted(scopes)}, {"clientCertificate": []}, {}]


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


def problems(instance: str, *statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the OpenAPI responses for the problem documents of a path.

    `instance` is the path, and `statuses` are those that its endpoint raises. Statuses that every
    path has are added.
    """
    of_the_door = () if ROUTES[instance].scopes is ANYONE else _WITH_A_KEY
    all_statuses = sorted({*statuses, *_ANYWHERE, *of_the_door})
    return {status: _problem(instance, status) for status in all_statuses}


def replayed(instance: str) -> dict[int | str, dict[str, Any]]:
    """Return the OpenAPI response 409 for a camera token that the same caller submitted before."""
    example = {
        "type": "urn:birthmark:problem:token-already-submitted",
        "title": "Camera token already submitted",
        "status": 409,
        "detail": "You had this camera token validated before, and here each caller may do so...",
        "instance": instance,
        "request_id": examples.REQUEST_ID,
    }
    what = "This caller brought the token before, and SMA_REPLAY refuses that; it is no verdict"
    return {409: _described(what, models.ProblemDocument, example)}


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


def _problem(instance: str, status: int) -> dict[str, Any]:
    slug, title, detail = _EXAMPLES[status]
    example = {
        "type": f"urn:birthmark:problem:{slug}",
        "title": title,
        "status": status,
        "detail": detail,
        "instance": instance,
        "request_id": examples.REQUEST_ID,
        **_EXTRA_MEMBERS.get(status, {}),
    }
    described = _described(_TITLES[status], _MODELS.get(status, models.ProblemDocument), example)
    if status in _HEADERS:
        described["headers"] = _HEADERS[status]
    return described


def _described(what: str, model: type[BaseModel], example: dict[str, Any]) -> dict[str, Any]:
    content = {MEDIA_TYPE: {"schema": _reference(model), "example": example}}
    return {"description": what, "content": content}
