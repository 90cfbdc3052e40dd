"""Map errors to problem documents (RFC 9457).

Endpoints and middleware raise; the tables here give each error class its status, slug and title.
An error class without a row becomes "Internal error" for the caller, and a log record with the
traceback for the operator. A document never contains a traceback.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http import HTTPStatus

from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from birthmark_sma import errors
from birthmark_sma.protocol.verdict import Reason
from birthmark_sma.web.api.models import FieldError
from birthmark_sma.web.request_context import RequestContext

MEDIA_TYPE = "application/problem+json"
RETRY_AFTER_SECONDS = 1
MISDIRECTED = "misdirected-request"
MOST_ERRORS = 20
"""The most errors that a problem document lists. `more_errors` has the number of the others."""
# The sender chooses the names of unknown fields, so a document repeats only their beginning.
_MAX_FIELD_CHARACTERS = 64

_log = logging.getLogger(__name__)


class RequestError(Exception):
    """A fault of the HTTP request itself. The authority is not called.

    `slug` is a key of _REQUEST_KINDS, which gives the status. `detail` is sent to the caller.
    """

    def __init__(self, slug: str, detail: str) -> None:
        super().__init__(detail)
        self.slug = slug


class UnknownAddressError(Exception):
    """A camera token whose table or key index does not exist.

    The attempt is in the audit trail. The response is a 400 that carries the verdict FAIL.
    """

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason.told_to_caller)
        self.reason = reason


class InvalidRequestError(Exception):
    """A malformed body or header. The message of the exception lists the errors of each field.

    `fields` holds up to MOST_ERRORS errors; `more` is the number of further ones.
    """

    def __init__(self, fields: Sequence[FieldError], more: int = 0) -> None:
        self.fields = fields[:MOST_ERRORS]
        self.more = more + len(fields) - len(self.fields)
        super().__init__(self.summary(MOST_ERRORS))

    def summary(self, most: int) -> str:
        """Return the first `most` errors in one line, and the number of further ones."""
        told = [f"{field.field}: {field.detail}" for field in self.fields[:most]]
        more = self.more + len(self.fields) - len(told)
        return "; ".join(told) + (f"; and {more:,} more errors" if more else "")

    @classmethod
    def of(cls, error: ValidationError, more: int = 0) -> "InvalidRequestError":
        """Make this error from pydantic's, with field names and rules but without values.

        A value could be a secret, such as a nonce or a NUC hash.
        """
        return cls([_field_error(each["loc"], each["msg"]) for each in error.errors()], more)


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of problem: its HTTP status, title, and the slug that ends its `type` URN."""

    status: int
    slug: str
    title: str
    retry: bool = False
    """True adds a Retry-After field. The default is RETRY_AFTER_SECONDS."""
    field: str | None = None
    """The request field at fault. The document then has `errors` with this field."""
    challenge: str | None = None
    """The value of WWW-Authenticate (RFC 6750, section 3)."""


def _refused(slug: str, title: str, field: str) -> Kind:
    return Kind(422, slug, title, field=field)


_REQUEST_KINDS = {
    kind.slug: kind
    for kind in (
        Kind(413, "body-too-large", "Body too large"),
        Kind(415, "unsupported-media-type", "Unsupported media type"),
        Kind(410, "withdrawn", "Not supported"),
        Kind(408, "request-timeout", "Request timeout"),
        Kind(421, MISDIRECTED, "Misdirected request"),
        Kind(403, "foreign-form", "Form from elsewhere"),
        Kind(422, "unusable-filter", "Filter cannot be used"),
    )
}

_INVALID = Kind(422, "invalid-request", "Invalid request")
_CHALLENGE = 'Bearer realm="birthmark-sma"'
_RATE_LIMITED = Kind(429, "rate-limited", "Too many requests", retry=True)
_INTERNAL = Kind(500, "internal-error", "Internal error")

# The first row that matches an error counts, so a subclass must stand before its base class:
# KeyEncryptionKeyRefusedError before KeyRefusedError, RootCrlNotPublishedError before
# CrlNotPublishedError.
_KINDS: tuple[tuple[type[errors.BirthmarkError], Kind], ...] = (
    (
        errors.UnauthenticatedError,
        Kind(401, "unauthenticated", "Unauthenticated", challenge=_CHALLENGE),
    ),
    (
        errors.InsufficientScopeError,
        Kind(
            403,
            "insufficient-scope",
            "Insufficient scope",
            challenge=f'{_CHALLENGE}, error="insufficient_scope"',
        ),
    ),
    (errors.EnrolmentRefusedError, Kind(403, "enrolment-refused", "Enrolment refused")),
    (
        errors.KeyEncryptionKeyRefusedError,
        _refused("key-refused", "Public key refused", "key_encryption_public_key"),
    ),
    (
        errors.KeyRefusedError,
        _refused("key-refused", "Public key refused", "device_public_key"),
    ),
    (errors.CsrRefusedError, _refused("csr-refused", "Certification request refused", "csr")),
    (
        errors.DeviceSerialRefusedError,
        _refused("serial-refused", "Device serial refused", "device_serial"),
    ),
    (
        errors.DeviceDescriptionRefusedError,
        _refused("description-refused", "Device description refused", "device_family"),
    ),
    (
        errors.IdempotencyKeyReusedError,
        _refused("idempotency-key-reused", "Idempotency key reused", "Idempotency-Key"),
    ),
    (
        errors.DeviceAlreadyProvisionedError,
        Kind(409, "device-already-provisioned", "Device already provisioned"),
    ),
    (errors.PublicKeyInUseError, Kind(409, "public-key-in-use", "Public key in use")),
    (errors.NucHashInUseError, Kind(409, "nuc-hash-in-use", "NUC hash in use")),
    (
        errors.TokenAlreadySubmittedError,
        Kind(409, "token-already-submitted", "Camera token already submitted"),
    ),
    (errors.UnknownDeviceError, Kind(404, "unknown-device", "Unknown device")),
    (
        errors.RootCrlNotPublishedError,
        Kind(404, "crl-not-published", "Revocation list not published"),
    ),
    (
        errors.CrlNotPublishedError,
        Kind(503, "crl-not-published", "Revocation list not published", retry=True),
    ),
    (errors.IssuerExpiredError, Kind(503, "issuer-expired", "Issuer expired", retry=True)),
    (errors.PoolFullError, Kind(503, "pool-full", "Too much work waiting", retry=True)),
    (errors.ShuttingDownError, Kind(503, "shutting-down", "Shutting down", retry=True)),
    (errors.KeyEncryptionKeyChangedError, Kind(503, "keys-changed", "Keys changed", retry=True)),
    (
        errors.DatabaseUnavailableError,
        Kind(503, "database-unavailable", "Database unavailable", retry=True),
    ),
)


def problem_response(
    context: RequestContext,
    kind: Kind,
    detail: str,
    *,
    retry_after: int = RETRY_AFTER_SECONDS,
    **members: object,
) -> JSONResponse:
    """Return a problem document as a response.

    `members` are extension members (RFC 9457, section 3.2). `retry_after` is in seconds and is sent
    only where `kind.retry` is set.
    """
    body = {
        "type": f"urn:birthmark:problem:{kind.slug}",
        "title": kind.title,
        "status": kind.status,
        "detail": detail,
        "instance": context.path,
        "request_id": context.request_id,
        **members,
    }
    headers = {}
    if kind.retry:
        headers["Retry-After"] = str(retry_after)
    if kind.challenge is not None:
        headers["WWW-Authenticate"] = kind.challenge
    return JSONResponse(body, kind.status, headers, MEDIA_TYPE)


def error_response(context: RequestContext, error: Exception) -> JSONResponse:
    """Return the problem document of any error. An unexpected one is logged with its traceback."""
    for error_type, handler in _HANDLERS.items():
        if isinstance(error, error_type):
            return handler(context, error)
    return _unexpected(context, error)


def _birthmark_error(context: RequestContext, error: Exception) -> JSONResponse:
    for error_type, kind in _KINDS:
        if isinstance(error, error_type):
            if kind.status >= 500:
                # `advice` is for the operator: the log has it, the document does not.
                advice = getattr(error, "advice", "")
                _log.warning("%s: %s%s", kind.title, error, f": {advice}" if advice else "")
            detail = _sentence(str(error))
            if kind.field is None:
                return problem_response(context, kind, detail)
            return problem_response(
                context, kind, detail, errors=[{"field": kind.field, "detail": detail}]
            )
    return _unexpected(context, error)


def _rate_limited(context: RequestContext, error: Exception) -> JSONResponse:
    assert isinstance(error, errors.RateLimitedError)  # noqa: S101
    return problem_response(
        context, _RATE_LIMITED, _sentence(str(error)), retry_after=error.retry_after
    )


def _request_error(context: RequestContext, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestError)  # noqa: S101  _HANDLERS maps this class to here
    return problem_response(context, _REQUEST_KINDS[error.slug], str(error))


def _unknown_address(context: RequestContext, raised: Exception) -> JSONResponse:
    """Return a 400 that carries the verdict FAIL."""
    assert isinstance(raised, UnknownAddressError)  # noqa: S101
    reason = raised.reason
    error = reason.told_to_caller
    return problem_response(
        context,
        Kind(400, reason.value.replace("_", "-"), error or ""),
        f"{error}: this authority has no such table or key. Check that the token reached the"
        " manufacturer that provisioned the device.",
        validation_result=reason.verdict.value,
        error=error,
    )


def _invalid_request(context: RequestContext, error: Exception) -> JSONResponse:
    assert isinstance(error, InvalidRequestError)  # noqa: S101
    errors = [field.model_dump() for field in error.fields]
    more = {"more_errors": error.more} if error.more else {}
    return problem_response(
        context, _INVALID, f"The request is malformed: {error}.", errors=errors, **more
    )


def _http_exception(context: RequestContext, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)  # noqa: S101
    # Starlette's `detail` is replaced by a sentence of _HTTP_DETAILS. Its headers, such as Allow,
    # are kept.
    title = HTTPStatus(error.status_code).phrase
    kind = Kind(error.status_code, title.lower().replace(" ", "-"), title)
    response = problem_response(context, kind, _HTTP_DETAILS.get(error.status_code, title + "."))
    response.headers.update(error.headers or {})
    return response


def _unexpected(context: RequestContext, error: Exception) -> JSONResponse:
    _log.error("%s %s failed", context.method, context.path, exc_info=error)
    return problem_response(
        context,
        _INTERNAL,
        "Something went wrong inside the authority, and nothing was decided. The operator finds"
        " the cause in the log.",
    )


# `error_response` takes the first class that matches. RateLimitedError is a BirthmarkError, so it
# must stand before it.
_HANDLERS: dict[type[Exception], Callable[[RequestContext, Exception], JSONResponse]] = {
    errors.RateLimitedError: _rate_limited,
    errors.BirthmarkError: _birthmark_error,
    RequestError: _request_error,
    UnknownAddressError: _unknown_address,
    InvalidRequestError: _invalid_request,
    HTTPException: _http_exception,
}

_HTTP_DETAILS = {
    404: "There is nothing at this path. /docs lists what there is.",
    405: "This path does not know this method. The Allow header says which it knows.",
}


def _field_error(location: Sequence[int | str], message: str) -> FieldError:
    field = ".".join(str(part) for part in location)[:_MAX_FIELD_CHARACTERS] or "body"
    message = message.removeprefix("Value error, ")
    return FieldError(field=field, detail=message[:1].lower() + message[1:])


def _sentence(text: str) -> str:
    return text if text.endswith((".", "!", "?")) else text + "."
