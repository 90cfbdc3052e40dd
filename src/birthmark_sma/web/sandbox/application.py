"""The ASGI application of a sandbox: the normal application with fault injection around it.

`web.server` uses it in place of `Application` for an authority that was created as a sandbox. It
adds GET /sandbox, which lists the scenarios, and documents the scenario header in OpenAPI.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, FastAPI
from starlette.responses import JSONResponse
from starlette.types import ASGIApp

from birthmark_sma.authority.background.sandbox_expiry import LIFETIME
from birthmark_sma.web.middleware.request_metrics import RequestMetrics
from birthmark_sma.web.pipeline import Application
from birthmark_sma.web.routes import SANDBOX
from birthmark_sma.web.sandbox import scenario_catalog
from birthmark_sma.web.sandbox.fault_injection import FaultInjector
from birthmark_sma.web.server_state import ApiRequest

if TYPE_CHECKING:
    from birthmark_sma.web.middleware.tracing import Tracing

PATH = SANDBOX.path

_ABOUT = (
    "This is a sandbox for integration tests. It answers as an authority does, and fails on demand."
    " Its certificates say SANDBOX; nothing that it says is worth anything elsewhere."
)
_LIST: dict[str, Any] = {
    "about": _ABOUT,
    "data_kept_seconds": int(LIFETIME.total_seconds()),
    "data": "Devices, revocations, first answers and validations are deleted by themselves once"
    " they are an hour old.",
    "how": f"Ask by the header {scenario_catalog.HEADER} of any request; or by"
    " the table_id of a camera token, whose key_index then is the number (0: the default); or by"
    " the device_serial that is"
    " to be provisioned. The header beats the others, and is the only way at /validate. In a batch,"
    " each element gets the verdict that its table_id asks for, or none (already-submitted); the"
    " first that asks for anything else decides for the whole request.",
    "marks": {
        scenario_catalog.MARK: "on every answer",
        scenario_catalog.HEADER: "on the answer to what was asked for",
    },
    "scenarios": [each.as_json() for each in scenario_catalog.ALL],
}


_router = APIRouter()


class SandboxApplication(Application):
    """Application with fault injection and a list of scenarios."""

    of_sandbox = True
    sent_by_pages = (*Application.sent_by_pages, scenario_catalog.HEADER)
    read_by_pages = (*Application.read_by_pages, scenario_catalog.MARK, scenario_catalog.HEADER)

    def __init__(
        self,
        app: FastAPI,
        routers: Sequence[APIRouter],
        origins: Sequence[str],
        metrics: RequestMetrics,
        tracing: "Tracing | None" = None,
    ) -> None:
        app.include_router(_router)
        super().__init__(app, (*routers, _router), origins, metrics, tracing)
        _document(app)

    def wrap(self, respond: ASGIApp) -> ASGIApp:
        """Return the fault injector in front of all steps that lead to a response."""
        return FaultInjector(respond, lambda: self.state)


@_router.get(PATH, include_in_schema=False)
async def _listed(request: ApiRequest) -> JSONResponse:  # noqa: ARG001
    """Return the list of scenarios."""
    return JSONResponse(_LIST)


def _document(app: FastAPI) -> None:
    """Add the scenario header and the sandbox mark to the OpenAPI document."""
    plain = app.openapi
    parameter = {
        "name": scenario_catalog.HEADER,
        "in": "header",
        "required": False,
        "description": "What this sandbox is to do, as `rate-limited; seconds=3`. GET /sandbox says"
        " what each does.",
        "schema": {"type": "string"},
        "examples": {each.name: {"value": each.name} for each in scenario_catalog.ALL},
    }
    answered = {
        scenario_catalog.MARK: {
            "description": "That this is a sandbox, and for how many seconds it keeps data",
            "schema": {"type": "string", "const": scenario_catalog.MARKED},
        }
    }

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            made = plain()  # FastAPI stores this object in openapi_schema, so it is changed once
            made["info"]["title"] += " (SANDBOX)"
            made["info"]["description"] = f"**{_ABOUT}**\n\n{made['info']['description']}"
            for operations in made["paths"].values():
                for operation in operations.values():
                    operation.setdefault("parameters", []).append(parameter)
                    for response in operation["responses"].values():
                        response["headers"] = {**response.get("headers", {}), **answered}
        return app.openapi_schema or {}

    app.openapi = document  # type: ignore[method-assign]  # FastAPI's documented way
