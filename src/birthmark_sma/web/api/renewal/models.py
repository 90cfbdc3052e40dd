"""The JSON models of renewal: see `web.api.models.wire` for what they have in common."""

import base64
from datetime import datetime
from typing import Annotated, Self

from pydantic import ConfigDict, Field, field_validator

from birthmark_sma.authority.renewal.proof import RenewalRequest
from birthmark_sma.authority.renewal.registration import Renewed
from birthmark_sma.authority.renewal.windows import Window
from birthmark_sma.protocol.bundle import MAX_SIGNATURE_BYTES, parse_time
from birthmark_sma.protocol.verdict import rfc3339
from birthmark_sma.web.api import examples
from birthmark_sma.web.api.models.wire import Pem, WireRequest, WireResponse


class RenewRequest(WireRequest):
    """A device that asks for a new certificate. The signature proves that it has the old key."""

    model_config = ConfigDict(json_schema_extra={"examples": examples.RENEW_REQUESTS})

    device_certificate: Annotated[
        Pem,
        Field(
            description="A certificate of the device, PEM: the current one, an earlier one that is"
            " still valid, or one that expired within the grace period"
        ),
    ]
    csr: Annotated[
        Pem,
        Field(
            description="PEM PKCS#10 for the new key or the same key. It names no other device. It"
            " also makes the request idempotent: the same CSR gets the same certificate"
        ),
    ]
    key_encryption_public_key: Annotated[
        Pem | None,
        Field(
            description="The recipient key, PEM, if the device asks for its table keys. The `csr`"
            " must then name it, as in a provisioning request"
        ),
    ] = None
    supersede: Annotated[
        bool,
        Field(
            description="True revokes every other certificate of the device as superseded. False"
            " leaves the old one valid to its end"
        ),
    ] = False
    requested_at: Annotated[
        str,
        Field(
            min_length=27,
            max_length=27,
            pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z$",
            description="The device's time in UTC, within 5 minutes of the authority's",
        ),
    ]
    signature: Annotated[
        str,
        Field(
            repr=False,
            min_length=4,
            max_length=4 * (-(-MAX_SIGNATURE_BYTES // 3)),
            pattern="^[A-Za-z0-9+/]+={0,2}$",
            description="Base64 of the signature with the key of `device_certificate`, with the"
            " algorithms of bundles. docs/protocol.md says which bytes are signed",
        ),
    ]

    @field_validator("requested_at")
    @classmethod
    def _is_time(cls, value: str) -> str:
        if parse_time(value) is None:
            raise ValueError("there is no such time")
        return value

    @field_validator("signature")
    @classmethod
    def _is_base64(cls, value: str) -> str:
        try:
            decoded = base64.b64decode(value, validate=True)
        except ValueError:
            decoded = b""
        # The decoder ignores unused bits of the last character.
        if base64.b64encode(decoded).decode() != value:
            raise ValueError("it is base64 with padding")
        return value

    def renewal_request(self) -> RenewalRequest:
        """Return the request as `authority` takes it."""
        return RenewalRequest(
            device_certificate=self.device_certificate,
            csr=self.csr,
            key_encryption_public_key=self.key_encryption_public_key,
            supersede=self.supersede,
            requested_at=datetime.fromisoformat(self.requested_at),
            signature=base64.b64decode(self.signature),
        )


class RenewResponse(WireResponse):
    """The device's new certificate and, with a recipient key, its table keys."""

    device_certificate: Annotated[str, Field(description="The device's new certificate, PEM")]
    certificate_chain: Annotated[
        list[str], Field(description="The intermediate, then the root, PEM each")
    ]
    table_assignments: Annotated[
        list[int], Field(description="The ids of the device's three key tables, ascending")
    ]
    renewed_at: Annotated[
        str, Field(description="The time at which the certificate was made; RFC 3339, UTC")
    ]
    sealed_secrets: Annotated[
        str | None,
        Field(
            repr=False,
            description="With a recipient key: compact JWE as in a provisioning response. Inside is"
            " a JSON object: `device_serial`, `certificate_sha256` (64 hex) and `table_keys`. The"
            " NUC hash stays as it is",
        ),
    ] = None

    @classmethod
    def of(cls, renewed: Renewed) -> Self:
        """Return the response for a renewed device."""
        return cls(
            device_certificate=renewed.device_certificate,
            certificate_chain=list(renewed.certificate_chain),
            table_assignments=list(renewed.table_assignments),
            renewed_at=rfc3339(renewed.renewed_at),
            sealed_secrets=renewed.sealed_secrets,
        )


class SuggestedWindow(WireResponse):
    """The time in which the device should renew, at a random moment of it."""

    start: str
    end: str


class RenewalInfoResponse(WireResponse):
    """The renewal window of a certificate (RFC 9773, section 4.2)."""

    # The field's name is that of the RFC.
    suggestedWindow: SuggestedWindow  # noqa: N815

    @classmethod
    def of(cls, window: Window) -> Self:
        """Return the response for a window."""
        start, end = (
            each.isoformat(timespec="seconds").removesuffix("+00:00") + "Z"
            for each in (window.start, window.end)
        )
        return cls(suggestedWindow=SuggestedWindow(start=start, end=end))
