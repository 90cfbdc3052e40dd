"""POST /api/v1/devices/provision: certify a device's key, and return its tables and their keys.

The endpoint parses the request and formats the response. `authority.provisioning` does the rest.
The response contains secrets, so no cache may store it and nothing of it may be logged.
"""

import asyncio

from fastapi import APIRouter
from fastapi.responses import JSONResponse
from starlette.responses import Response

from birthmark_sma.errors import DatabaseUnavailableError
from birthmark_sma.web.api import examples, openapi
from birthmark_sma.web.api.models.provisioning import ProvisionRequest, ProvisionResponse
from birthmark_sma.web.middleware.request_body import parse, read_json
from birthmark_sma.web.problems import FieldError, InvalidRequestError
from birthmark_sma.web.routes import PROVISION
from birthmark_sma.web.server_state import ApiRequest

PATH = PROVISION.path
IDEMPOTENCY_HEADER = "Idempotency-Key"
MAX_IDEMPOTENCY_KEY_CHARACTERS = 255
_PROVISIONING_SECONDS = 60  # from the whole body to the commit; then 503

router = APIRouter(tags=["provision"])


@router.post(
    PATH,
    summary="Provision a device",
    description="Certifies the device's public key, assigns three key tables, and returns their"
    " master keys and a NUC hash: in the clear, or sealed to `key_encryption_public_key` as compact"
    " JWE (ECDH-ES+A256KW or RSA-OAEP-256, with A256GCM). A device that exists gets a new"
    " certificate if the operator allowed a re-enrolment: it needs a `csr`, and keeps its tables."
    " Send an"
    f" `{IDEMPOTENCY_HEADER}`: the same request then gets the same response again for 24 hours.",
    responses={
        **openapi.success(
            ProvisionResponse,
            "The device is registered",
            **{
                "secrets in the clear": examples.PROVISIONED,
                "sealed secrets": examples.PROVISIONED_SEALED,
            },
        ),
        **openapi.problems(PATH, 403, 408, 409, 413, 415, 422, 429, 500, 503),
    },
    openapi_extra={
        "requestBody": openapi.request_body(ProvisionRequest),
        "parameters": [
            {
                "name": IDEMPOTENCY_HEADER,
                "in": "header",
                "required": False,
                "description": "1 to 255 visible ASCII characters, new for every new request",
                "schema": {
                    "type": "string",
                    "minLength": 1,
                    "maxLength": MAX_IDEMPOTENCY_KEY_CHARACTERS,
                    "pattern": "^[!-~]+$",
                },
            }
        ],
    },
)
async def provision_device(request: ApiRequest) -> Response:
    """Provision a device. Raises DatabaseUnavailableError after 60 seconds."""
    idempotency_key = _idempotency_key(request)
    authority, caller = request.server.authority, request.context.known_caller
    who = caller.partition
    # Before the body is read: what is refused must cost little.
    authority.provisioner.check_room(who)
    body = await read_json(
        request.context.headers, request.receive, authority.settings.max_body_bytes
    )
    asked = parse(body, ProvisionRequest).provisioning_request(idempotency_key, caller.key)
    try:
        async with asyncio.timeout(_PROVISIONING_SECONDS):
            provisioned = await authority.provisioner.provision(asked, who)
    except TimeoutError:
        raise DatabaseUnavailableError("The database does not answer in time") from None
    # "no-store": the response has the device's secrets.
    answer = ProvisionResponse.of(provisioned)
    return JSONResponse(answer.model_dump(exclude_none=True), headers={"Cache-Control": "no-store"})


def _idempotency_key(request: ApiRequest) -> str | None:
    """Return the Idempotency-Key, or None without one. Raises InvalidRequestError."""
    keys = request.headers.getlist(IDEMPOTENCY_HEADER)
    if not keys:
        return None
    key = keys[0]
    visible = all("!" <= character <= "~" for character in key)
    if len(keys) > 1 or not 1 <= len(key) <= MAX_IDEMPOTENCY_KEY_CHARACTERS or not visible:
        raise InvalidRequestError(
            [
                FieldError(
                    field=IDEMPOTENCY_HEADER,
                    detail="it must occur once and"
                    f" have 1 to {MAX_IDEMPOTENCY_KEY_CHARACTERS} visible ASCII characters",
                )
            ]
        )
    return key
