"""The table of problems (RFC 9457): the status, type and title of each error.

`web.problem_documents` makes the response to an error from it, `web.transport.protocol` the
response to a request that the application never receives, and `web.api.openapi` the documentation
of the statuses. The errors of a request that have no class in errors/ are here, too.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.exceptions import HTTPException

from birthmark_sma import errors
from birthmark_sma.counts import counted
from birthmark_sma.protocol.verdict import Reason, Verdict

MISDIRECTED = "misdirected-request"
ALREADY_SUBMITTED = "token-already-submitted"
MOST_ERRORS = 20
"""The most errors that a problem document lists. `more_errors` has the number of the others."""
# The sender chooses the names of unknown fields, so a document repeats only their beginning.
_MAX_FIELD_CHARACTERS = 64
_CHALLENGE = 'Bearer realm="birthmark-sma"'

# --- the documents, as OpenAPI describes them


class FieldError(BaseModel):
    """The error in one field of a request."""

    model_config = ConfigDict(frozen=True)

    field: str
    detail: str


class ProblemDocument(BaseModel):
    """A problem (RFC 9457). `detail` says what to do about it."""

    model_config = ConfigDict(frozen=True)

    type: str
    title: str
    status: int
    detail: str
    instance: str
    request_id: str


class InvalidRequestProblem(ProblemDocument):
    """A malformed request, field by field."""

    errors: Annotated[list[FieldError], Field(max_length=20)]
    more_errors: Annotated[
        int | None, Field(description="How many errors there are beyond those that are listed")
    ] = None


class UnknownAddressProblem(ProblemDocument):
    """A well-formed camera token whose table or key index does not exist: it is FAIL, recorded."""

    validation_result: Literal[Verdict.FAIL]
    error: str


# --- the errors that have no class in errors/


class RequestError(Exception):
    """A fault of the HTTP request itself. The authority is not called.

    `slug` names a row of TABLE. `detail` is sent to the caller.
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
        told = [f"{each.field}: {each.detail}" for each in self.fields[:most]]
        more = self.more + len(self.fields) - len(told)
        return "; ".join(told) + (f"; and {counted(more, 'more error')}" if more else "")

    @classmethod
    def of(cls, error: ValidationError, more: int = 0) -> "InvalidRequestError":
        """Make this error from pydantic's, with field names and rules but without values.

        A value could be a secret, such as a nonce or a NUC hash.
        """
        return cls([_field_error(each["loc"], each["msg"]) for each in error.errors()], more)


# --- the table


@dataclass(frozen=True, slots=True, eq=False)
class Problem:
    """A row of the table: the status, type and title of a problem, and how it is documented."""

    status: int
    slug: str
    """The end of the `type` URN."""
    title: str
    error: type[Exception] | None = None
    """The class of errors that is this problem. RequestError names its row by the slug."""
    meaning: str = ""
    """What the status means, in the OpenAPI document. A problem without it is not documented."""
    detail: str = ""
    """The detail in the OpenAPI document, and of every problem that has no text of its own."""
    members: Mapping[str, object] | None = None
    """Extension members (RFC 9457, section 3.2) of the documented example."""
    model: type[ProblemDocument] = ProblemDocument
    retry: bool = False
    """True adds a Retry-After field."""
    at_fault: str | None = None
    """The request field at fault. The document then has `errors` with this field."""
    challenge: str | None = None
    """The value of WWW-Authenticate (RFC 6750, section 3)."""

    def document(self, detail: str, instance: str, request_id: str) -> dict[str, object]:
        """Return the members that every problem document has."""
        return {
            "type": f"urn:birthmark:problem:{self.slug}",
            "title": self.title,
            "status": self.status,
            "detail": detail,
            "instance": instance,
            "request_id": request_id,
        }


def _refused(error: type[Exception], slug: str, title: str, at_fault: str) -> Problem:
    return Problem(422, slug, title, error, at_fault=at_fault)


def _retry(error: type[Exception], slug: str, title: str) -> Problem:
    return Problem(503, slug, title, error, retry=True)


# Of several rows for an error, the first one counts, so a subclass must stand before its base
# class. Of several rows for a status, the first one with a meaning is the documented example.
TABLE = (
    Problem(
        *(400, "unknown-table", "Unknown table ID", UnknownAddressError),
        "Unknown table or key index: FAIL, and recorded",
        "Unknown table ID: this authority has no such...",
        {"validation_result": "FAIL", "error": "Unknown table ID"},
        UnknownAddressProblem,
    ),
    Problem(400, "unknown-key-index", "Unknown key index", UnknownAddressError),
    Problem(
        *(401, "unauthenticated", "Unauthenticated", errors.UnauthenticatedError),
        "The request has no valid access key",
        "This access key is not known here.",
        challenge=_CHALLENGE,
    ),
    Problem(
        *(403, "insufficient-scope", "Insufficient scope", errors.InsufficientScopeError),
        "The scope of the access key does not include this path",
        "This access key has the scope provision. This path needs the scope validate.",
        challenge=f'{_CHALLENGE}, error="insufficient_scope"',
    ),
    Problem(403, "enrolment-refused", "Enrolment refused", errors.EnrolmentRefusedError),
    Problem(
        *(403, "renewal-refused", "Renewal refused", errors.RenewalRefusedError),
        "The proof or its time is wrong, the certificate cannot be renewed, or the device is not"
        " active",
        "The device's signature does not verify for this request. Sign with the key of"
        " device_certificate...",
    ),
    Problem(
        *(403, "renewal-time-refused", "Time of renewal refused", errors.RenewalTimeRefusedError)
    ),
    Problem(403, "device-not-active", "Device not active", errors.DeviceNotActiveError),
    Problem(403, "foreign-form", "Form from another site", RequestError),
    Problem(
        *(404, "not-found", "Not Found", HTTPException),
        detail="Nothing is at this path. /docs lists all paths.",
    ),
    Problem(404, "unknown-device", "Unknown device", errors.UnknownDeviceError),
    Problem(404, "unknown-validation", "Unknown validation", errors.UnknownValidationError),
    Problem(404, "unknown-access-key", "Unknown access key", errors.UnknownAccessKeyError),
    Problem(404, "unknown-act", "Unknown act", errors.UnknownActError),
    Problem(
        *(404, "crl-not-published", "Revocation list not published"),
        errors.RootCrlNotPublishedError,
        "The root's key has not signed a list yet",
        "The root has signed no revocation list yet...",
    ),
    Problem(
        *(404, "unknown-certificate", "Unknown certificate", errors.UnknownCertificateError),
        "No device certificate has this id",
        "This authority has issued no device certificate with this id.",
    ),
    Problem(
        *(405, "method-not-allowed", "Method Not Allowed", HTTPException),
        detail="This path does not have this method. The Allow header lists its methods.",
    ),
    Problem(
        *(409, "device-already-provisioned", "Device already provisioned"),
        errors.DeviceAlreadyProvisionedError,
        "The serial, the key or the NUC hash is registered already, or a re-enrolment is refused",
        "Device already provisioned.",
    ),
    Problem(409, "re-enrolment-refused", "Re-enrolment refused", errors.ReEnrolmentRefusedError),
    Problem(409, "public-key-in-use", "Public key in use", errors.PublicKeyInUseError),
    Problem(409, "nuc-hash-in-use", "NUC hash in use", errors.NucHashInUseError),
    Problem(
        *(409, ALREADY_SUBMITTED, "Camera token already submitted"),
        errors.TokenAlreadySubmittedError,
        "The caller submitted this token before, and SMA_REPLAY refuses that: no verdict",
        "You have validated this camera token before, and this authority allows that once...",
    ),
    Problem(
        *(410, "withdrawn", "Not supported", RequestError),
        "Not supported. The body was not read, and nothing was decided",
        "This authority does not validate certificate bundles, because they contain the hash of the"
        " image. Send the camera token to /validate or /validate-legacy.",
    ),
    Problem(
        *(413, "body-too-large", "Body too large", RequestError),
        "The body is too large",
        "A body here has at most 65536 bytes.",
    ),
    Problem(
        *(415, "unsupported-media-type", "Unsupported media type", RequestError),
        "The Content-Type of the body is another one, or the body is compressed",
        "Send the body as JSON, with Content-Type: application/json.",
    ),
    Problem(
        *(421, MISDIRECTED, "Misdirected request", RequestError),
        "Access is open, and Host does not name this server",
        "Host must be localhost or the address of this server...",
    ),
    Problem(
        *(422, "invalid-request", "Invalid request", InvalidRequestError),
        "The request is malformed, or a key in it is refused",
        "The request is malformed: nonce: string should have at least 24 characters.",
        {"errors": [{"field": "nonce", "detail": "string should have at least 24 characters"}]},
        InvalidRequestProblem,
    ),
    Problem(422, "unusable-filter", "Invalid filter", RequestError),
    _refused(
        *(errors.KeyEncryptionKeyRefusedError, "key-refused", "Public key refused"),
        "key_encryption_public_key",
    ),
    _refused(errors.KeyRefusedError, "key-refused", "Public key refused", "device_public_key"),
    _refused(
        *(errors.DeviceCertificateRefusedError, "certificate-refused"),
        *("Device certificate refused", "device_certificate"),
    ),
    _refused(errors.CsrRefusedError, "csr-refused", "Certification request refused", "csr"),
    _refused(
        *(errors.DeviceSerialRefusedError, "serial-refused", "Device serial refused"),
        "device_serial",
    ),
    _refused(
        *(errors.DeviceDescriptionRefusedError, "description-refused"),
        *("Device description refused", "device_family"),
    ),
    _refused(
        *(errors.IdempotencyKeyReusedError, "idempotency-key-reused", "Idempotency key reused"),
        "Idempotency-Key",
    ),
    Problem(
        *(429, "rate-limited", "Too many requests", errors.RateLimitedError),
        "The caller has reached its rate limit. Nothing was done, and this is no verdict. Try again"
        " after Retry-After",
        "Too many requests: the limit is 600 in 60 seconds. Try again in 12 seconds.",
        retry=True,
    ),
    Problem(
        *(503, "database-unavailable", "Database unavailable", errors.DatabaseUnavailableError),
        "The database does not answer, or too many requests wait. Try again after Retry-After",
        "The database does not answer.",
        retry=True,
    ),
    _retry(errors.CrlNotPublishedError, "crl-not-published", "Revocation list not published"),
    _retry(errors.IssuerExpiredError, "issuer-expired", "Issuer expired"),
    _retry(errors.RenewalOutdatedError, "renewal-outdated", "Renewal outdated"),
    _retry(errors.PoolFullError, "pool-full", "Too many requests waiting"),
    _retry(errors.ShuttingDownError, "shutting-down", "Shutting down"),
    _retry(errors.KeyEncryptionKeyChangedError, "keys-changed", "Keys changed"),
    _retry(errors.IssuerChangedError, "keys-changed", "Keys changed"),
    _retry(errors.KeyTablesRotatedError, "tables-rotated", "Key tables rotated"),
)

INTERNAL = Problem(
    *(500, "internal-error", "Internal error", None),
    "An internal error. Nothing was decided",
    "An internal error occurred, and nothing was decided...",
)

# The problems of requests that the application never receives. The HTTP protocol sends them and
# closes the connection.
LINE_BYTES = 8_192
HEAD_BYTES = 16_384
MAX_FIELDS = 100

NOT_HTTP = Problem(
    400, "not-http", "Bad Request", detail="This is not HTTP/1.1 as RFC 9112 defines it."
)
NOT_ONE_HOST = Problem(
    *(400, "not-one-host", "Bad Request"),
    detail="An HTTP/1.1 request has exactly one Host field: a name or an address, and optionally a"
    " port (RFC 9112, section 3.2).",
)
REQUEST_TIMEOUT = Problem(
    *(408, "request-timeout", "Request Timeout", RequestError),
    "The request was not complete in time",
    "The request was not complete in time. Send it at once, or on a faster connection.",
)
TARGET_TOO_LONG = Problem(
    *(414, "target-too-long", "URI Too Long", None),
    "The request line is too long",
    f"A request line has at most {LINE_BYTES} bytes. Shorten the query.",
)
HEAD_TOO_LARGE = Problem(
    *(431, "head-too-large", "Request Header Fields Too Large", None),
    "The header fields are too large or too many",
    f"A head has at most {HEAD_BYTES} bytes and {MAX_FIELDS} fields. Send fewer or shorter ones.",
)
TRANSFER_CODING = Problem(
    *(501, "transfer-coding", "Not Implemented", None),
    "The body has a transfer coding other than chunked",
    "The only supported transfer coding is chunked. Send a Content-Length, or Transfer-Encoding:"
    " chunked.",
)
HTTP_VERSION = Problem(
    *(505, "http-version", "HTTP Version Not Supported", None),
    "The request is not in HTTP/1.1 or HTTP/1.0",
    "Send the request in HTTP/1.1 or HTTP/1.0.",
)
OF_CONNECTIONS = (
    *(NOT_HTTP, NOT_ONE_HOST, REQUEST_TIMEOUT, TARGET_TOO_LONG, HEAD_TOO_LARGE, TRANSFER_CODING),
    HTTP_VERSION,
)


def find_example(status: int) -> Problem:
    """Return the problem that documents a status. Raises StopIteration if there is none."""
    rows = (*TABLE, INTERNAL, *OF_CONNECTIONS)
    return next(each for each in rows if each.status == status and each.meaning)


def find_by_slug(slug: str) -> Problem:
    """Return the first row with this slug. Raises StopIteration if there is none."""
    return next(each for each in (*TABLE, *OF_CONNECTIONS) if each.slug == slug)


def find_problem(error: Exception) -> Problem:
    """Return the row of an error; INTERNAL if it has none."""
    for each in (*TABLE, REQUEST_TIMEOUT):
        if each.error is not None and isinstance(error, each.error):
            match error:
                case RequestError(slug=slug):
                    found = each.slug == slug
                case UnknownAddressError(reason=reason):
                    found = each.title == reason.told_to_caller
                case HTTPException(status_code=status):
                    found = each.status == status
                case _:
                    found = True
            if found:
                return each
    return INTERNAL


def _field_error(location: Sequence[int | str], message: str) -> FieldError:
    name = ".".join(str(part) for part in location)[:_MAX_FIELD_CHARACTERS] or "body"
    message = message.removeprefix("Value error, ")
    return FieldError(field=name, detail=message[:1].lower() + message[1:])
