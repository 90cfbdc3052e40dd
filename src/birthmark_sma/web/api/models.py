"""The JSON models of the API. Requests are strict: no type coercion, no unknown fields.

Endpoints parse bodies into these models, and the OpenAPI document publishes them with their
docstrings. A parsed model is well formed and no more: `authority` decides whether a table exists or
a key is accepted. Requests of published clients alone may have unknown fields.
"""

import binascii
from datetime import datetime
from functools import lru_cache
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from birthmark_sma.authority.access.store import AccessKey
from birthmark_sma.authority.provisioning.issuance import (
    MAX_DESCRIPTION,
    Provisioned,
    ProvisioningRequest,
)
from birthmark_sma.authority.validation.records import Validation
from birthmark_sma.config import Disclosure
from birthmark_sma.pki.keys.key_policy import MAX_PEM_CHARACTERS
from birthmark_sma.pki.keys.recipient_key import RECIPIENT_URN_PREFIX
from birthmark_sma.pki.names import MAX_SERIAL_CHARACTERS, find_unprintable
from birthmark_sma.protocol.camera_token import (
    ENCRYPTED_NUC_HASH_BYTES,
    NONCE_BYTES,
    CameraToken,
)
from birthmark_sma.protocol.key_table import MAX_WIRE_INTEGER, TABLES_PER_DEVICE
from birthmark_sma.protocol.verdict import TEXTS, Reason, Verdict
from birthmark_sma.web.api import examples

MOST_TOKENS = 1_000
"""The most camera tokens in a batch."""
WireInteger = Annotated[int, Field(ge=0, le=MAX_WIRE_INTEGER)]
_Three = Annotated[
    list[WireInteger], Field(min_length=TABLES_PER_DEVICE, max_length=TABLES_PER_DEVICE)
]
Pem = Annotated[str, Field(min_length=1, max_length=MAX_PEM_CHARACTERS)]


def _hex(digits: int) -> object:
    return Field(pattern=f"^[0-9a-fA-F]{{{digits}}}$", min_length=digits, max_length=digits)


Hex24 = Annotated[str, _hex(24)]
Hex32 = Annotated[str, _hex(32)]
Hex64 = Annotated[str, _hex(64)]
Hex96 = Annotated[str, _hex(96)]
Hex160 = Annotated[str, _hex(160)]


@lru_cache(maxsize=4)  # all verdicts of a batch have the same time
def rfc3339(time: datetime) -> str:
    """Return a UTC time in the format of RFC 3339, with milliseconds and `Z`."""
    return time.isoformat(timespec="milliseconds").removesuffix("+00:00") + "Z"


class WireRequest(BaseModel):
    # Without `hide_input_in_errors`, pydantic's messages would contain secrets such as NUC hashes.
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, hide_input_in_errors=True)


class WireResponse(BaseModel):
    model_config = ConfigDict(frozen=True)


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


class ProvisionRequest(WireRequest):
    """A device that asks for its certificate, key tables and NUC hash."""

    model_config = ConfigDict(json_schema_extra={"examples": examples.PROVISION_REQUESTS})

    device_serial: Annotated[
        str,
        Field(
            min_length=1,
            max_length=MAX_SERIAL_CHARACTERS,
            description="Printable, without white space at either end. Unique without regard to"
            " case, to how letters are composed, and to white space",
        ),
    ]
    device_family: Annotated[
        str,
        Field(
            min_length=1, max_length=MAX_DESCRIPTION, description="A name for this kind of device"
        ),
    ]
    device_public_key: Annotated[
        Pem | None, Field(description="PEM SubjectPublicKeyInfo. This or `csr`")
    ] = None
    csr: Annotated[
        Pem | None,
        Field(
            description="PEM PKCS#10: proof of possession. It names no other device. With"
            " `key_encryption_public_key` its common name is the serial, and it requests a"
            f" subjectAltName with the URI `{RECIPIENT_URN_PREFIX}<64 hex>`: the SHA-256 of the DER"
            " SubjectPublicKeyInfo of that key"
        ),
    ] = None
    app_version: Annotated[
        str | None,
        Field(
            min_length=1,
            max_length=MAX_DESCRIPTION,
            description="The version of the camera's software",
        ),
    ] = None
    nuc_hash: Annotated[
        Hex64 | None,
        Field(
            repr=False,
            description="The NUC hash of the device. Without it, the authority simulates one",
        ),
    ] = None
    key_encryption_public_key: Annotated[
        Pem | None,
        Field(
            description="The recipient key, PEM: a second key of the device's, EC P-256 or P-384,"
            " X25519, or RSA. `sealed_secrets` then takes the place of `simulated_nuc_hash` and"
            " `table_keys`. It needs a `csr`"
        ),
    ] = None

    @field_validator("device_serial", "device_family", "app_version")
    @classmethod
    def _printable(cls, value: str | None) -> str | None:
        if value is not None and not value.isprintable():
            raise ValueError(f"it has printable characters only. {find_unprintable(value)}")
        return value

    @model_validator(mode="after")
    def _one_key(self) -> Self:
        if (self.device_public_key is None) == (self.csr is None):
            raise ValueError("give exactly one of device_public_key and csr")
        return self

    def provisioning_request(
        self, idempotency_key: str | None, enrolled_with: AccessKey | None
    ) -> ProvisioningRequest:
        """Return the request as `authority` takes it.

        `enrolled_with` is the access key of the caller, or None where access is open.
        """
        return ProvisioningRequest(
            device_serial=self.device_serial,
            device_family=self.device_family,
            device_public_key=self.device_public_key,
            csr=self.csr,
            app_version=self.app_version,
            nuc_hash=None if self.nuc_hash is None else bytes.fromhex(self.nuc_hash),
            key_encryption_public_key=self.key_encryption_public_key,
            idempotency_key=idempotency_key,
            enrolled_with=enrolled_with,
        )


class ProvisionResponse(WireResponse):
    """All that a device needs to make camera tokens. It is sent once. Keep it secret."""

    device_certificate: Annotated[str, Field(description="The device's certificate, PEM")]
    certificate_chain: Annotated[
        list[str], Field(description="The intermediate, then the root, PEM each")
    ]
    table_assignments: Annotated[
        list[int], Field(description="The ids of the device's three key tables, ascending")
    ]
    provisioning_id: Annotated[str, Field(description="A unique id, for questions to the operator")]
    simulated_nuc_hash: Annotated[
        str | None, Field(repr=False, description="64 hex; not with a recipient key")
    ] = None
    table_keys: Annotated[
        dict[str, str] | None,
        Field(repr=False, description="Table id to master key, 64 hex; not with a recipient key"),
    ] = None
    sealed_secrets: Annotated[
        str | None,
        Field(
            repr=False,
            description="With a recipient key: compact JWE (RFC 7516, RFC 7518). `alg` is"
            " `ECDH-ES+A256KW` for P-256, P-384 and X25519 and `RSA-OAEP-256` for RSA; `enc` is"
            " `A256GCM`. Inside is a JSON object: `device_serial`, `certificate_sha256` (SHA-256 of"
            " the DER of `device_certificate`, 64 hex), `nuc_hash` (64 hex) and `table_keys`",
        ),
    ] = None

    @classmethod
    def of(cls, provisioned: Provisioned) -> Self:
        """Return the response for a provisioned device."""
        return cls(
            device_certificate=provisioned.device_certificate,
            certificate_chain=list(provisioned.certificate_chain),
            table_assignments=list(provisioned.table_assignments),
            provisioning_id=provisioned.provisioning_id,
            simulated_nuc_hash=provisioned.simulated_nuc_hash,
            table_keys=provisioned.table_keys,
            sealed_secrets=provisioned.sealed_secrets,
        )
