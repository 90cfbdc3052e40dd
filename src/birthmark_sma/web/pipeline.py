"""All steps that a request passes, in their order.

uvicorn calls `Application.__call__` for each request. It is the list of the steps around every
response, and calls `Application.respond`, the list of the steps that lead to it. Each step is a
function in `web.middleware`, the endpoints are in `web.api` and `web.dashboard`. Only these two
methods decide who may do what: FastAPI describes the API and serves its documentation pages.
"""

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias

from fastapi import APIRouter, FastAPI
from fastapi.middleware.asyncexitstack import AsyncExitStackMiddleware
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Route as StarletteRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from birthmark_sma.errors import (
    CallerLeftError,
    InsufficientScopeError,
    RateLimitedError,
    ShuttingDownError,
    UnauthenticatedError,
)
from birthmark_sma.web import request_context
from birthmark_sma.web.dashboard import session_middleware
from birthmark_sma.web.middleware import rate_limit
from birthmark_sma.web.middleware.request_body import IDEMPOTENCY_HEADER
from birthmark_sma.web.middleware.request_metrics import RequestMetrics
from birthmark_sma.web.middleware.security_headers import ResponseHeaders
from birthmark_sma.web.problem_documents import error_response
from birthmark_sma.web.problems import MISDIRECTED, RequestError
from birthmark_sma.web.request_context import CONTEXT, RequestContext, begin_request
from birthmark_sma.web.routes import ROUTES, SANDBOX, UNKNOWN, Credentials, Route, find_routes
from birthmark_sma.web.server_state import ApiRequest, ServerState

if TYPE_CHECKING:
    from birthmark_sma.web.middleware.tracing import Tracing

Endpoint: TypeAlias = Callable[[ApiRequest], Awaitable[ASGIApp]]


class Application:
    """The ASGI application of a server.

    `state` is set when the application starts, before the first request.
    """

    of_sandbox = False
    sent_by_pages: tuple[str, ...] = (
        "Authorization",
        "Content-Type",
        IDEMPOTENCY_HEADER,
        "If-Match",
        request_context.HEADER,
    )
    """Header fields that pages of the CORS origins may send."""
    read_by_pages: tuple[str, ...] = (
        *(*rate_limit.FIELDS, "Retry-After"),
        "ETag",
        request_context.HEADER,
    )
    """Header fields of responses that pages of the CORS origins may read."""
    state: ServerState

    def __init__(
        self,
        app: FastAPI,
        routers: Sequence[APIRouter],
        origins: Sequence[str],
        metrics: RequestMetrics,
        tracing: "Tracing | None" = None,
    ) -> None:
        self.routes = app.routes
        self.metrics = metrics
        self._tracing = tracing
        self._fastapi = app
        self._documentation = AsyncExitStackMiddleware(app.router)
        self._endpoints = collect_endpoints(routers)
        self._responder = self.respond_to_pages_of(origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or run the lifespan."""
        if scope["type"] != "http":
            await self._fastapi(scope, receive, send)
            return
        context = begin_request(scope)
        if self._tracing is not None:
            self._tracing.begin(context)
        headers = ResponseHeaders(context, send)
        try:
            await self._responder(scope, receive, headers.send)
        except asyncio.CancelledError:
            # The HTTP protocol cancels a request whose caller has left. uvicorn cancels those that
            # are not finished some seconds after a stop signal.
            if not context.status and not context.caller_left:
                await error_response(context, ShuttingDownError())(scope, receive, headers.send)
        finally:
            self.metrics.answered(context)  # the metrics, the line in the log, the end of the trace

    async def respond(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response to a request: that of its endpoint, or a problem document."""
        context: RequestContext = scope[CONTEXT]
        route, state = context.route, self.state
        if context.method == "HEAD":  # RFC 9110, section 9.3.2; uvicorn leaves the body out
            scope = {**scope, "method": "GET"}
        request = ApiRequest(scope, receive)
        request.context, request.server = context, state
        try:
            if context.host not in state.authenticator.known_hosts:
                state.authenticator.check_host(context)
            if route.dashboard:
                await session_middleware.load_session(request)
            if route.credentials is not Credentials.IGNORED:
                caller = state.authenticator.authenticate(context)
                if route.limit is not None:
                    query = rate_limit.limit_request(context, state.authority.rate_limits, caller)
                    if query is not None:
                        await query
            endpoint = self._find_endpoint(request)
            response = await endpoint(request)  # it reads the body
            await response(scope, receive, send)
        except CallerLeftError:
            return  # the connection is closed: there is no one to send a response to
        except Exception as error:
            if context.status:
                # A second response must not follow the head of another. The transport may still
                # hold that head back. Once it is out, uvicorn cuts the connection.
                await send({"type": "http.response.body", "body": b"", "more_body": True})
                raise
            await self._explain(request, error)(scope, receive, send)

    def respond_to_pages_of(self, origins: Sequence[str]) -> ASGIApp:
        """Return `respond`, which also answers pages of the CORS origins if there are any."""
        respond = self.wrap(self.respond)
        if not origins:
            return respond
        return CORSMiddleware(
            respond,
            allow_origins=origins,
            allow_methods=("GET", "POST"),
            allow_headers=self.sent_by_pages,
            expose_headers=self.read_by_pages,
        )

    def wrap(self, respond: ASGIApp) -> ASGIApp:
        """Return the application that answers requests. Subclasses put middleware around it."""
        return respond

    def _find_endpoint(self, request: ApiRequest) -> Endpoint:
        """Return the endpoint of the matched route. Raises HTTPException (404 or 405)."""
        route = request.context.route
        methods = self._endpoints.get(route)
        if methods is None:
            if route.path == UNKNOWN.path or route is SANDBOX:
                raise HTTPException(404)
            methods = {"GET": self._serve_documentation}
        endpoint = methods.get(request.method)
        if endpoint is None:
            raise HTTPException(405, headers={"Allow": ", ".join(_allowed_methods(request))})
        return endpoint

    async def _serve_documentation(self, request: ApiRequest) -> ASGIApp:
        """Return FastAPI's own routes: the documentation pages, and the directories of files."""
        request.scope["app"] = self._fastapi
        return self._documentation

    def _explain(self, request: ApiRequest, error: Exception) -> ASGIApp:
        """Return the problem document of an error, or a page for a person; count refused access."""
        context = request.context
        if isinstance(error, UnauthenticatedError):
            self.metrics.turned_away("unauthenticated")
            try:
                rate_limit.record_failed_auth(context, self.state.authority.rate_limits)
            except RateLimitedError as refusal:
                error = refusal
        elif isinstance(error, InsufficientScopeError):
            self.metrics.turned_away("insufficient_scope")
        elif isinstance(error, RequestError) and error.slug == MISDIRECTED:
            self.metrics.turned_away("misdirected")
        problem = error_response(context, error, self._outage_seconds)
        return session_middleware.show(request, problem) if context.route.dashboard else problem

    def _outage_seconds(self) -> float:
        """Return for how long a writer of this process has failed; 0 without a fault."""
        writers = self.state.authority.writers
        return max(each.health.outage_seconds(each.oldest_seconds) for each in writers)


def _allowed_methods(request: ApiRequest) -> list[str]:
    """Return the methods of the path of a request: several routes may have one path."""
    routes = find_routes(request.scope["raw_path"])
    allowed = {method for route in routes for method in route.methods}
    return sorted({*allowed, "HEAD"} if "GET" in allowed else allowed)


def collect_endpoints(routers: Sequence[APIRouter]) -> Mapping[Route, Mapping[str, Endpoint]]:
    """Return the endpoints by route and method. Raises KeyError for one that has no route."""
    endpoints: defaultdict[Route, dict[str, Endpoint]] = defaultdict(dict)
    for router in routers:
        for each in router.routes:
            if isinstance(each, StarletteRoute):  # FastAPI's are a subclass
                for method in (each.methods or set()) - {"HEAD"}:
                    endpoints[ROUTES[each.path]][method] = each.endpoint
    return endpoints
