"""Make the problem document (RFC 9457) of an error.

`web.pipeline` calls `error_response` for every error; the rows come from `web.problems`. An error
without a row becomes "Internal error" for the caller, and a log record with the traceback for the
operator. A document never contains a traceback.
"""

import logging
from collections.abc import Callable, Mapping
from types import MappingProxyType

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from birthmark_sma.web.problem_lookup import find_problem
from birthmark_sma.web.problems import (
    INTERNAL,
    InvalidRequestError,
    Problem,
    UnknownAddressError,
)
from birthmark_sma.web.request_context import RequestContext
from birthmark_sma.web.retry_after import retry_after

MEDIA_TYPE = "application/problem+json"

_NOTHING_DECIDED = (
    "An internal error occurred, and nothing was decided. The operator finds the cause in the log."
)

_log = logging.getLogger(__name__)


def problem_response(
    context: RequestContext,
    problem: Problem,
    detail: str,
    members: Mapping[str, object] = MappingProxyType({}),
    *,
    seconds: int | None = None,
) -> JSONResponse:
    """Return a problem document as a response.

    `members` are extension members (RFC 9457, section 3.2). `seconds` is the Retry-After, if any.
    """
    body = {**problem.document(detail, context.path, context.request_id), **members}
    headers = {}
    if seconds is not None:
        headers["Retry-After"] = str(seconds)
    if problem.challenge is not None:
        headers["WWW-Authenticate"] = problem.challenge
    return JSONResponse(body, problem.status, headers, MEDIA_TYPE)


def error_response(
    context: RequestContext, error: Exception, outage_seconds: Callable[[], float] = float
) -> JSONResponse:
    """Return the problem document of any error.

    `outage_seconds` returns for how long nothing could be written: Retry-After grows with it.

    An unexpected error is logged with its traceback. One with a status of 500 or more is logged
    with its advice for the operator, which the document does not have.
    """
    problem = find_problem(error)
    if problem is INTERNAL:
        _log.error("%s %s failed", context.method, context.path, exc_info=error)
    elif problem.status >= 500:
        advice = getattr(error, "advice", "")
        _log.warning("%s: %s%s", problem.title, error, f": {advice}" if advice else "")
    detail, members = _describe(problem, error)
    seconds = retry_after(error, outage_seconds) if problem.retry else None
    response = problem_response(context, problem, detail, members, seconds=seconds)
    if isinstance(error, HTTPException):
        response.headers.update(error.headers or {})  # such as Allow
    return response


def _describe(problem: Problem, error: Exception) -> tuple[str, dict[str, object]]:
    """Return the detail of an error, and the extension members of its document."""
    detail, members = str(error), dict[str, object]()
    match error:
        case HTTPException():  # its own detail is not a sentence
            detail = problem.detail
        case InvalidRequestError(fields=fields, more=more):
            detail = f"The request is malformed: {error}"
            members["errors"] = [each.model_dump() for each in fields]
            if more:
                members["more_errors"] = more
        case UnknownAddressError(reason=reason):
            detail = (
                f"{problem.title}: this authority has no such table or key. Check that the token"
                " reached the manufacturer that provisioned the device"
            )
            members |= {"validation_result": reason.verdict.value, "error": problem.title}
        case _ if problem is INTERNAL:
            detail = _NOTHING_DECIDED
    detail = detail if detail.endswith((".", "!", "?")) else f"{detail}."
    if problem.at_fault is not None:
        members["errors"] = [{"field": problem.at_fault, "detail": detail}]
    return detail, members
