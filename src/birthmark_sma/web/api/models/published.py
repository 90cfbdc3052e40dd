"""The JSON models of the published clients, whose requests may have unknown fields."""

import binascii
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator

from birthmark_sma.protocol.camera_token import ENCRYPTED_NUC_HASH_BYTES, NONCE_BYTES, CameraToken
from birthmark_sma.protocol.key_table import TABLES_PER_DEVICE
from birthmark_sma.protocol.verdict import Reason, Verdict
from birthmark_sma.web.api import examples
from birthmark_sma.web.api.models.wire import Hex24, Hex32, Hex64, Hex160, WireInteger, WireResponse

_Three = Annotated[
    list[WireInteger], Field(min_length=TABLES_PER_DEVICE, max_length=TABLES_PER_DEVICE)
]


class _PublishedRequest(BaseModel):
    """A request of a published client. Unknown members are ignored."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True, hide_input_in_errors=True)


class PublishedCameraToken(_PublishedRequest):
    """A camera token in the form of the published clients: the tag is a field of its own."""

    ciphertext: Annotated[Hex64, Field(repr=False, description="32 bytes of ciphertext, in hex")]
    auth_tag: Annotated[Hex32, Field(repr=False, description="The 16-byte tag, in hex")]
    nonce: Annotated[Hex24, Field(repr=False, description="The 12-byte nonce, in hex")]
    table_id: WireInteger
    key_index: WireInteger


class PublishedValidateRequest(_PublishedRequest):
    """A camera token, as the published submission server sends it."""

    model_config = ConfigDict(json_schema_extra={"examples": [examples.PUBLISHED_REQUEST]})

    camera_token: Annotated[PublishedCameraToken, Field(repr=False)]
    # Any value is accepted, because the value is never used.
    manufacturer_authority_id: Annotated[
        Any,
        Field(
            description="The submission server's name for this authority. It is not used",
            json_schema_extra={"type": "string"},
        ),
    ] = None

    def tokens(self) -> list[CameraToken]:
        """Return one token, with the tag behind the ciphertext as `protocol` has it."""
        sent = self.camera_token
        return [
            CameraToken(
                encrypted_nuc_hash=bytes.fromhex(sent.ciphertext + sent.auth_tag),
                table_id=sent.table_id,
                key_index=sent.key_index,
                nonce=bytes.fromhex(sent.nonce),
            )
        ]


class LegacyValidateRequest(_PublishedRequest):
    """A camera token that a published Raspberry Pi client packed. One of three keys opens it."""

    model_config = ConfigDict(json_schema_extra={"examples": [examples.LEGACY_REQUEST]})

    ciphertext: Annotated[
        Hex160,
        Field(
            repr=False,
            description="The hex form of the base64 text of 32 bytes of ciphertext, the 12-byte"
            " nonce and the 16-byte tag",
        ),
    ]
    table_references: _Three
    key_indices: Annotated[
        _Three,
        Field(
            repr=False, description="One per table, in the same order: two of the three are random"
        ),
    ]

    @field_validator("ciphertext")
    @classmethod
    def _packed(cls, value: str) -> str:
        try:
            _unpack(value)
        except ValueError:
            raise ValueError("it is not the hex form of the base64 text of 60 bytes") from None
        return value

    def tokens(self) -> list[CameraToken]:
        """Return one token for each of the three tables, in the order of the request.

        Two key indices are random, so a genuine token opens under just one of the three keys.
        """
        # The packed bytes are: 32 of ciphertext, 12 of nonce, 16 of tag.
        packed = _unpack(self.ciphertext)
        return [
            CameraToken(
                encrypted_nuc_hash=packed[:32] + packed[44:],
                table_id=table_id,
                key_index=key_index,
                nonce=packed[32:44],
            )
            for table_id, key_index in zip(self.table_references, self.key_indices, strict=True)
        ]


def _unpack(ciphertext: str) -> bytes:
    packed = binascii.a2b_base64(bytes.fromhex(ciphertext), strict_mode=True)
    if len(packed) != ENCRYPTED_NUC_HASH_BYTES + NONCE_BYTES:
        raise ValueError
    return packed


class PublishedValidateResponse(WireResponse):
    """A verdict and a message. Neither tells which device it was."""

    valid: bool
    message: str

    @classmethod
    def of(cls, reason: Reason) -> Self:
        """Return the response for a reason.

        The message names an unknown table or key index. It gives no other reason for a FAIL.
        """
        valid = reason.verdict is Verdict.PASS
        told = reason.told_to_caller or _PUBLISHED_MESSAGES[reason.verdict]
        return cls(valid=valid, message=told)

    @classmethod
    def malformed(cls, error: str) -> Self:
        """Return the response to a body without a well-formed camera token.

        It has status 200, as published clients take every other status for a verdict and store it.
        """
        return cls(valid=False, message=f"The request is malformed: {error}.")


_PUBLISHED_MESSAGES = {
    Verdict.PASS: "The camera token is valid.",
    Verdict.FAIL: "The camera token is not valid.",
}
