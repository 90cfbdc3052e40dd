"""The JSON models of provisioning."""

from typing import Annotated, Self

from pydantic import ConfigDict, Field, field_validator, model_validator

from birthmark_sma.authority.access.store import AccessKey
from birthmark_sma.authority.provisioning.issuance import (
    MAX_DESCRIPTION,
    Provisioned,
    ProvisioningRequest,
)
from birthmark_sma.pki.keys.recipient_key import RECIPIENT_URN_PREFIX
from birthmark_sma.pki.names import MAX_SERIAL_CHARACTERS, find_unprintable
from birthmark_sma.web.api import examples
from birthmark_sma.web.api.models.wire import Hex64, Pem, WireRequest, WireResponse


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
