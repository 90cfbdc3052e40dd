"""What a camera remembers: first what it asks for, then what it got. One file, sealed.

The contract of this room: the file is `Pending` before the first request leaves, with all that a
repetition needs to be the very same request, and becomes `Identity` in one step.
"""

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from birthmark_sma.device.state_directory import PrivateDirectory
from birthmark_sma.device.state_encryption import Sealing, seal, unseal
from birthmark_sma.errors import DamagedDeviceStateError

FILE = "camera.json"


@dataclass(frozen=True, slots=True)
class Pending:
    """A request to be provisioned whose answer is not on disk yet.

    `request` is the body to the letter: a CSR's signature is another one each time it is made, and
    the authority gives a first answer only to the same request under the same Idempotency-Key, and
    only to the enrolment key that came with it.
    """

    device_serial: str
    request: str = field(repr=False)
    idempotency_key: str = field(repr=False)
    enrolment_key: str | None = field(repr=False)
    private_key: str = field(repr=False)
    key_encryption_private_key: str = field(repr=False)
    nonce_secret: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Identity:
    """A provisioned camera. Keys and certificates are PEM, byte strings are hex."""

    device_serial: str
    provisioning_id: str
    device_certificate: str
    certificate_chain: tuple[str, str]
    """The intermediate's certificate, and the root's."""
    private_key: str = field(repr=False)
    nuc_hash: str = field(repr=False)
    table_keys: dict[str, str] = field(repr=False)
    """From the table id, in decimal, to the master key."""
    nonce_secret: str = field(repr=False)
    keys_per_table: int


State = Pending | Identity
_KINDS: dict[str, type[Pending] | type[Identity]] = {"pending": Pending, "provisioned": Identity}


def load(directory: PrivateDirectory, sealing: Sealing) -> State | None:
    """Return what the directory holds, or None for a new camera.

    Raises DamagedDeviceStateError, or DeviceSecretError where it is sealed otherwise.
    """
    text = directory.read(FILE)
    if text is None:
        return None
    path = directory.path / FILE
    content = unseal(text, sealing, path)
    try:
        fields: dict[str, Any] = json.loads(content)
        kind = _KINDS[fields.pop("state")]
        if "certificate_chain" in fields:
            fields["certificate_chain"] = tuple(fields["certificate_chain"])
        return kind(**fields)
    except (AttributeError, KeyError, TypeError, ValueError):
        raise DamagedDeviceStateError(
            f"{path} was written by another version of this program: install that one."
        ) from None


def save(state: State, directory: PrivateDirectory, sealing: Sealing) -> None:
    """Write it, sealed; on disk when this returns. Raises DeviceStorageError."""
    [name] = [name for name, kind in _KINDS.items() if isinstance(state, kind)]
    content = json.dumps({"state": name} | asdict(state)).encode()
    directory.write(FILE, seal(content, sealing))
