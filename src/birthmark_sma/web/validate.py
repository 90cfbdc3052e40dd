"""POST /api/v1/validate/nuc: a camera token in, a verdict out."""

import asyncio

from fastapi import APIRouter
from fastapi.responses import JSONResponse
from starlette.requests import Request
from starlette.responses import Response

from birthmark_sma.errors import DatabaseUnavailableError
from birthmark_sma.web import examples, openapi
from birthmark_sma.web.intake import authority_of, caller_of, parse_json
from birthmark_sma.web.problems import unknown_address
from birthmark_sma.web.wire import ValidateNucRequest, ValidateNucResponse

PATH = "/api/v1/validate/nuc"

router = APIRouter(tags=["validate"])


@router.post(
    PATH,
    summary="Validate a camera token",
    description="PASS means: the token opens, its NUC hash belongs to a registered and active"
    " device, and the table is one of that device's. FAIL never says why. The audit trail has the"
    " attempt before the answer leaves; the same token may be validated again.",
    responses={
        **openapi.success(ValidateNucResponse, "A verdict", PASS=examples.PASS, FAIL=examples.FAIL),
        **openapi.problems(PATH, 400, 408, 413, 415, 422, 500, 503),
    },
    openapi_extra={"requestBody": openapi.request_body(ValidateNucRequest)},
)
async def validate_nuc(request: Request) -> Response:
    """Parse, hand over to the validator, phrase its verdict."""
    authority = authority_of(request)
    settings = authority.settings
    asked = await parse_json(request, ValidateNucRequest)
    try:
        async with asyncio.timeout(settings.answer_timeout):
            validation = await authority.validator.validate(
                asked.camera_token(), caller_of(request)
            )
    except TimeoutError:
        raise DatabaseUnavailableError("The database does not answer in time") from None
    if validation.reason.told_to_caller is not None:
        return unknown_address(request, validation.reason)
    answer = ValidateNucResponse.of(validation, settings.manufacturer_id, settings.disclosure)
    return JSONResponse(answer.model_dump())
