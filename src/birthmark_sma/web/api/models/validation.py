"""The JSON models of validations, single and in batches."""

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from birthmark_sma.authority.validation.records import Validation
from birthmark_sma.config import Disclosure
from birthmark_sma.protocol.camera_token import CameraToken
from birthmark_sma.protocol.verdict import TEXTS, Reason, Verdict, rfc3339
from birthmark_sma.web.api import examples
from birthmark_sma.web.api.models.wire import (
    Hex24,
    Hex96,
    WireInteger,
    WireRequest,
    WireResponse,
)

MOST_TOKENS = 1_000
"""The most camera tokens in a batch."""


class ValidateNucRequest(WireRequest):
    """A camera token, as an aggregation server received it from a camera."""

    model_config = ConfigDict(json_schema_extra={"examples": [examples.CAMERA_TOKEN]})

    encrypted_nuc_hash: Annotated[
        Hex96, Field(repr=False, description="32 bytes of ciphertext and the 16-byte tag, in hex")
    ]
    table_id: Annotated[WireInteger, Field(description="The id of the key table")]
    key_index: Annotated[WireInteger, Field(description="The index of the key in this table")]
    nonce: Annotated[Hex24, Field(repr=False, description="The 12-byte nonce, in hex")]

    def camera_token(self) -> CameraToken:
        """Return the token as `protocol` has it, with bytes in place of hex."""
        return CameraToken(
            encrypted_nuc_hash=bytes.fromhex(self.encrypted_nuc_hash),
            table_id=self.table_id,
            key_index=self.key_index,
            nonce=bytes.fromhex(self.nonce),
        )


class ValidateNucResponse(WireResponse):
    """A verdict. Only a PASS names the device, as far as the disclosure setting allows."""

    validation_result: Verdict
    manufacturer_id: Annotated[str, Field(description="The setting `SMA_MANUFACTURER_ID`")]
    device_family: Annotated[
        str | None, Field(description="On PASS, unless disclosure withholds it")
    ]
    device_serial: Annotated[
        str | None, Field(description="On PASS, unless disclosure withholds it")
    ]
    timestamp: Annotated[str, Field(description="The time of the verdict (RFC 3339, UTC)")]


class ValidateBatchRequest(WireRequest):
    """Camera tokens. Each is judged by itself: a malformed element does not affect the others."""

    # Elements are validated one by one (`batch_parsing`), so that a malformed one fails alone.
    tokens: Annotated[
        list[Any],
        Field(
            min_length=1,
            max_length=MOST_TOKENS,
            description="Each element has the form of the body of a single validation",
            json_schema_extra={"items": {"$ref": "#/components/schemas/ValidateNucRequest"}},
        ),
    ]


class RefusedElement(WireResponse):
    """An element that would be a 400 (recorded) or a 422 (not recorded) in a single validation."""

    validation_result: Literal[Verdict.FAIL]
    error: str


class ReplayedElement(WireResponse):
    """An element that would be a 409 in a single validation: recorded, without a verdict."""

    error: str


class ValidateBatchResponse(WireResponse):
    """The results, in the order of the tokens."""

    results: list[ValidateNucResponse | RefusedElement | ReplayedElement]


def verdict(
    validation: Validation, manufacturer_id: str, disclosure: Disclosure
) -> dict[str, str | None]:
    """Return a verdict in the form of ValidateNucResponse.

    On PASS, the device's family and serial are set as far as `disclosure` allows. On FAIL both are
    None. The result is a plain dict: a pydantic model would validate it again, which costs as much
    per token as deriving the token's key.
    """
    told = validation.reason is Reason.GENUINE and disclosure is not Disclosure.NONE
    serial_too = told and disclosure is Disclosure.SERIAL
    return {
        "validation_result": TEXTS[validation.reason][0],
        "manufacturer_id": manufacturer_id,
        "device_family": validation.device_family if told else None,
        "device_serial": validation.device_serial if serial_too else None,
        "timestamp": rfc3339(validation.validated_at),
    }
