"""Store the state of a camera in one sealed file: first its request, then its identity.

`camera` calls `load` and `save`. The file is `Pending` before the first request is sent, with
everything that a retry needs to be exactly the same request. It becomes `Identity` in one step. It
must never contain a mixture of both. A renewal puts its request into the identity, and the renewed
identity replaces both in one step.
"""

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from birthmark_sma.device.state_directory import PrivateDirectory
from birthmark_sma.device.state_encryption import Sealing, seal, unseal
from birthmark_sma.errors import DamagedDeviceStateError

FILE = "camera.json"


@dataclass(frozen=True, slots=True)
class Pending:
    """A provisioning request whose response is not on disk yet.

    `request` is the exact body: a CSR has a different signature each time it is signed. The
    authority repeats its first response only for the same request, under the same Idempotency-Key
    and the same enrolment key.
    """

    device_serial: str
    request: str = field(repr=False)
    idempotency_key: str = field(repr=False)
    enrolment_key: str | None = field(repr=False)
    private_key: str = field(repr=False)
    key_encryption_private_key: str = field(repr=False)
    nonce_secret: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class PendingRenewal:
    """A renewal whose response is not on disk yet. Its CSR is the idempotency key.

    The certificate that it presents is that of the identity which contains it.
    """

    csr: str
    private_key: str = field(repr=False)
    key_encryption_private_key: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Predecessor:
    """A renewed certificate that the authority has yet to revoke as superseded.

    `renewal` is the request by which it was renewed. It is repeated, with the wish to supersede.
    """

    device_certificate: str
    renewal: PendingRenewal
    private_key: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Identity:
    """A provisioned camera. Keys and certificates are PEM; byte strings are hex."""

    device_serial: str
    provisioning_id: str
    device_certificate: str
    certificate_chain: tuple[str, str]
    """The intermediate certificate, then the root certificate."""
    private_key: str = field(repr=False)
    nuc_hash: str = field(repr=False)
    table_keys: dict[str, str] = field(repr=False)
    """The master key of each table, by the table id in decimal."""
    nonce_secret: str = field(repr=False)
    keys_per_table: int
    authority_url: str | None = None
    """The URL for renewals. None in the state of an earlier version of this program."""
    root_fingerprints: tuple[str, ...] = ()
    """SHA-256 of the roots that the app pinned, in lower-case hex; empty if it pinned none."""
    renewal: PendingRenewal | None = None
    predecessor: Predecessor | None = None


def load_private_key(pem: str) -> ec.EllipticCurvePrivateKey:
    """Return a private key of a state. Raises DamagedDeviceStateError if it is no EC key."""
    key = serialization.load_pem_private_key(pem.encode(), password=None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise DamagedDeviceStateError(
            "The camera's private key is no EC key. Restore the camera's directory from a backup."
        )
    return key


State = Pending | Identity
_KINDS: dict[str, type[Pending] | type[Identity]] = {"pending": Pending, "provisioned": Identity}


def load(directory: PrivateDirectory, sealing: Sealing) -> State | None:
    """Return the state in the directory, or None for a new camera.

    Raises DamagedDeviceStateError, or DeviceSecretError if it is sealed under another secret.
    """
    text = directory.read(FILE)
    if text is None:
        return None
    path = directory.path / FILE
    content = unseal(text, sealing, path)
    try:
        fields: dict[str, Any] = json.loads(content)
        kind = _KINDS[fields.pop("state")]
        for name in ("certificate_chain", "root_fingerprints"):  # JSON has no tuples
            if name in fields:
                fields[name] = tuple(fields[name])
        if fields.get("renewal") is not None:
            fields["renewal"] = PendingRenewal(**fields["renewal"])
        if (old := fields.get("predecessor")) is not None:
            renewal = PendingRenewal(**old["renewal"])
            fields["predecessor"] = Predecessor(**old | {"renewal": renewal})
        return kind(**fields)
    except (AttributeError, KeyError, TypeError, ValueError):
        raise DamagedDeviceStateError(
            f"{path} was written by another version of this program. Install that version."
        ) from None


def save(state: State, directory: PrivateDirectory, sealing: Sealing) -> None:
    """Seal the state and write it. It is on disk when this returns.

    Raises DeviceStorageError if it cannot be written, and DeviceSecretError if it cannot be sealed.
    """
    [name] = [name for name, kind in _KINDS.items() if isinstance(state, kind)]
    content = json.dumps({"state": name} | asdict(state)).encode()
    directory.write(FILE, seal(content, sealing))
