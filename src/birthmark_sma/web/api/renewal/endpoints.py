"""POST /api/v1/devices/renew, and GET /api/v1/devices/renewal-info/{certificate_id} (RFC 9773).

A device renews its certificate without an access key: it proves to have the key of its certificate.
The endpoints parse requests and format responses; `authority.renewal` does the rest. Until the
proof is verified, nothing may be counted against the device. A refused proof counts as a wrong
credential of the address.
"""

import asyncio

from fastapi import APIRouter
from fastapi.responses import JSONResponse
from starlette.responses import Response

from birthmark_sma.authority.access.caller import RenewingDevice
from birthmark_sma.authority.rate_limits.limits import Kind
from birthmark_sma.authority.renewal.information import RenewalInformation, find_information
from birthmark_sma.authority.renewal.service import Renewed, VerifiedRenewal
from birthmark_sma.errors import (
    DatabaseUnavailableError,
    RenewalRefusedError,
    UnknownCertificateError,
)
from birthmark_sma.protocol.renewal import parse_certificate_id
from birthmark_sma.storage.outages.deadlines import QUICK_SECONDS
from birthmark_sma.web.api import examples, openapi
from birthmark_sma.web.api.renewal.models import RenewalInfoResponse, RenewRequest, RenewResponse
from birthmark_sma.web.middleware.rate_limit import consume, consume_shared, count_guess
from birthmark_sma.web.middleware.request_body import parse, read_json
from birthmark_sma.web.middleware.timeouts import run_with_timeout
from birthmark_sma.web.routes import RENEW, RENEWAL_INFO
from birthmark_sma.web.server_state import ApiRequest

_RENEWAL_SECONDS = 60  # from the whole body to the commit; then 503
_INFO_SECONDS = 4.0
_CERTIFICATE_ID = "^[A-Za-z0-9_-]{1,86}[.][A-Za-z0-9_-]{1,28}$"
_MOST_BYTES = 32_768
"""Three PEM texts of 8,192 characters, and a signature. Nobody is authenticated before the body is
read, so it is not the limit of other bodies."""

router = APIRouter(tags=["provision"])


@router.post(
    RENEW.path,
    summary="Renew a device certificate",
    description="Exchanges a certificate of the device for a new one. It needs no access key: the"
    " signature with the key of `device_certificate` is the proof. The same CSR gets the same"
    " certificate again, so a lost answer strands no device. Send a new `requested_at` and"
    " `signature` each time.",
    responses={
        **openapi.success(RenewResponse, "The device is renewed", renewed=examples.RENEWED),
        **openapi.problems(
            RENEW.path, 401, 408, 409, 413, 415, 422, 429, 500, 503, "renewal-refused"
        ),
    },
    openapi_extra={"requestBody": openapi.request_body(RenewRequest)},
)
async def renew_device(request: ApiRequest) -> Response:
    """Renew a certificate. Raises DatabaseUnavailableError after 60 seconds."""
    authority, caller = request.server.authority, request.context.known_caller.partition
    renewer = authority.renewer
    # Before the body is read: what is refused must cost little.
    renewer.check_room(caller)
    limit = min(_MOST_BYTES, authority.settings.max_body_bytes)
    body = await read_json(request.context.headers, request.receive, limit)
    asked = parse(body, RenewRequest).renewal_request()
    with renewer.counted() as succeed:
        try:
            async with asyncio.timeout(_RENEWAL_SECONDS):
                verified = await renewer.verify(asked, caller)
                await _take(request, verified)
                renewed = await renewer.renew(verified, caller)
        except TimeoutError:
            raise DatabaseUnavailableError("The database does not answer in time") from None
        except RenewalRefusedError:
            count_guess(request.context, authority.rate_limits)
            raise
        succeed(renewed)
    return _respond(renewed)


@router.get(
    RENEWAL_INFO.path,
    summary="When to renew a certificate",
    description="`certificate_id` is that of RFC 9773: the key identifier of the issuer and the"
    " serial number, each in base64url, with a dot between them. Renew at a random moment of the"
    " window, or at once if it is over. Ask again after `Retry-After`: an operator can pull the"
    " window forward.",
    responses={
        **openapi.success(RenewalInfoResponse, "The window", window=examples.RENEWAL_WINDOW),
        **openapi.problems(RENEWAL_INFO.path, 401, 429, 500, 503, "unknown-certificate"),
    },
    openapi_extra={
        "parameters": [
            {
                "name": "certificate_id",
                "in": "path",
                "required": True,
                "description": "The id of the certificate (RFC 9773, section 4.1)",
                "schema": {
                    "type": "string",
                    "pattern": _CERTIFICATE_ID,
                },
                "example": "aYhba4dGQEHhs3uEe6CuLN4ByNQ.AIdlQyE",  # the RFC's own
            }
        ]
    },
)
async def renewal_info(request: ApiRequest) -> Response:
    """Return the renewal window of a certificate. Raises UnknownCertificateError."""
    tail: bytes = request.scope["raw_path"][len(RENEWAL_INFO.prefix) :]
    try:
        key_identifier, serial_number = parse_certificate_id(tail.decode("ascii"))
    except ValueError:
        raise UnknownCertificateError from None
    database = request.server.authority.database

    def read() -> RenewalInformation:
        with database.read(QUICK_SECONDS) as connection:
            return find_information(connection, key_identifier, serial_number)

    found = await run_with_timeout(request.server.quick, read, _INFO_SECONDS)
    return JSONResponse(
        RenewalInfoResponse.of(found.window).model_dump(),
        headers={"Retry-After": str(int(found.next_check.total_seconds()))},
    )


async def _take(request: ApiRequest, verified: VerifiedRenewal) -> None:
    """Take a unit from the limit of the device. Raises RateLimitedError.

    A repetition is free: it gets no new certificate, and somebody who replays a request must not
    use up the limit of its device.
    """
    if verified.is_repetition:
        return
    context, limits = request.context, request.server.authority.rate_limits
    device = RenewingDevice(None, device_serial=verified.device_serial)
    consume(context, limits, Kind.RENEW, device)
    if limits.shared:
        await consume_shared(context, limits, Kind.RENEW, device)


def _respond(renewed: Renewed) -> Response:
    answer = RenewResponse.of(renewed)
    return JSONResponse(answer.model_dump(exclude_none=True), headers={"Cache-Control": "no-store"})
