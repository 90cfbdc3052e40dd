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
from birthmark_sma.web.middleware.request_body import (
    IDEMPOTENCY_HEADER,
    IDEMPOTENCY_PARAMETER,
    parse,
    read_idempotency_key,
    read_json,
)
from birthmark_sma.web.routes import PROVISION
from birthmark_sma.web.server_state import ApiRequest

PATH = PROVISION.path
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
        "parameters": [IDEMPOTENCY_PARAMETER],
    },
)
async def provision_device(request: ApiRequest) -> Response:
    """Provision a device. Raises DatabaseUnavailableError after 60 seconds."""
    idempotency_key = read_idempotency_key(request.headers)
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
