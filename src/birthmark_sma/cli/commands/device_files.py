"""Write the files of one provisioned device: all of them or none, also after a crash.

`commands/provision.py` calls `begin`, `register` and `finish`. `begin` writes the private key to a
partial directory before the device is registered. A run after a crash finds that key, repeats the
request under the same idempotency key, gets the first response again and finishes. Existing files
are never overwritten. `batch/workers.py` uses the key functions.
"""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from birthmark_sma.authority.acts.actor import Actor
from birthmark_sma.authority.provisioning.service import (
    Provisioned,
    Provisioner,
    ProvisioningRequest,
)
from birthmark_sma.errors import ConflictError, PkiError, PrivateFileError
from birthmark_sma.pki.names import requested_subject
from birthmark_sma.runtime.secret_files import (
    make_private_directory,
    read_private_file,
    sync_directory,
    write_private_file,
)

PRIVATE_KEY = "device_private_key.pem"
CERTIFICATE = "device_certificate.pem"
CHAIN = "certificate_chain.pem"
DATA = "provisioning_data.json"


@dataclass(frozen=True, slots=True)
class PendingDevice:
    """A device whose key is on disk and whose other files are not written yet."""

    output_dir: Path
    partial_dir: Path
    private_key: str = field(repr=False)
    public_key: str
    resumed: bool

    @property
    def idempotency_key(self) -> str:
        """The idempotency key: the same for the same device key.

        So a resumed run gets the first response.
        """
        return "files-" + hashlib.sha256(self.public_key.encode()).hexdigest()


def find_finished(output_dir: Path, device_serial: str) -> dict[str, Any] | None:
    """Return the data of this device if all its files are there and belong together, else None."""
    try:
        files = {
            name: read_private_file(output_dir / name).decode()
            for name in (PRIVATE_KEY, CERTIFICATE, CHAIN, DATA)
        }
        data = json.loads(files[DATA])
        public_key = public_half(files[PRIVATE_KEY].encode())
        whole = (
            data["device_serial"] == device_serial
            and data["device_private_key"] == files[PRIVATE_KEY]
            and data["device_public_key"] == public_key
            and data["device_certificate"] == files[CERTIFICATE]
            and data["certificate_chain"] == files[CHAIN]
            and len(data["master_keys"]) == len(data["table_assignments"])
        )
    except (PrivateFileError, ValueError, KeyError, TypeError):
        return None
    return data if whole else None


def begin(output_dir: Path) -> PendingDevice:
    """Create a key pair, or read that of an interrupted run.

    Raises PrivateFileError if the directory is not empty or cannot be written.
    """
    if output_dir.exists() and (not output_dir.is_dir() or any(output_dir.iterdir())):
        raise PrivateFileError(
            f"{output_dir} is not empty, and files of a device are never overwritten. Choose"
            " another directory with --output-dir."
        )
    partial_dir = output_dir.with_name(f".{output_dir.name}.partial")
    make_private_directory(output_dir.parent)
    make_private_directory(partial_dir)
    key_file = partial_dir / PRIVATE_KEY
    resumed = key_file.exists()
    if not resumed:
        write_private_file(key_file, new_private_key())
    private_pem = read_private_file(key_file)
    return PendingDevice(
        output_dir, partial_dir, private_pem.decode(), public_half(private_pem), resumed
    )


def register(
    provisioner: Provisioner,
    pending: PendingDevice,
    *,
    device_serial: str,
    device_family: str,
    actor: Actor,
) -> Provisioned:
    """Register the device, or re-enrol it if that is allowed.

    If it is refused, remove its key and raise the error.
    After any other error the device may be registered, and its key must stay for the next run.
    """
    request = ProvisioningRequest(
        device_serial=device_serial,
        device_family=device_family,
        csr=_make_csr(pending, device_serial),
        idempotency_key=pending.idempotency_key,
        actor=actor,
    )
    try:
        return provisioner.provision_device(request)
    except (ConflictError, PkiError):
        _abandon(pending)
        raise


def finish(pending: PendingDevice, provisioned: Provisioned, data: dict[str, Any]) -> None:
    """Write the remaining files, then rename the directory, so that all files appear at once.

    Raises PrivateFileError if that fails; the files then stay in the partial directory.
    """
    chain = provisioned.device_certificate + "".join(provisioned.certificate_chain)
    everything = data | {
        "device_certificate": provisioned.device_certificate,
        "certificate_chain": chain,
        "device_private_key": pending.private_key,
        "device_public_key": pending.public_key,
    }
    files = {
        CERTIFICATE: provisioned.device_certificate,
        CHAIN: chain,
        DATA: json.dumps(everything, indent=2) + "\n",
    }
    for name, content in files.items():
        # An interrupted run may have written some of them already.
        write_private_file(pending.partial_dir / name, content.encode(), replace=True)
    # A crash inside write_private_file leaves such a file.
    for stray in pending.partial_dir.glob(".*.partial"):
        stray.unlink()
    try:
        pending.partial_dir.rename(pending.output_dir)  # rename(2) replaces only an empty directory
        sync_directory(pending.output_dir.parent)  # makes the rename durable
    except OSError as error:
        raise PrivateFileError(
            f"{pending.output_dir} cannot be written: {error.strerror}. The files are in"
            f" {pending.partial_dir}."
        ) from None


def _abandon(pending: PendingDevice) -> None:
    """Remove the files that `begin` wrote for a refused device. Keep those of an earlier run.

    The earlier run may have registered the device, and then its key exists nowhere else.
    """
    if not pending.resumed:
        (pending.partial_dir / PRIVATE_KEY).unlink()
        pending.partial_dir.rmdir()


def _make_csr(pending: PendingDevice, device_serial: str) -> str:
    """Return the CSR of the device's key, in PEM.

    The signature is deterministic (RFC 6979), so that a resumed run sends the same request.
    """
    key = serialization.load_pem_private_key(pending.private_key.encode(), None)
    request = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(requested_subject(device_serial))
        .sign(cast("ec.EllipticCurvePrivateKey", key), hashes.SHA256(), ecdsa_deterministic=True)
    )
    return request.public_bytes(serialization.Encoding.PEM).decode()


def new_private_key() -> bytes:
    """Return a new P-256 private key as unencrypted PKCS#8 PEM, the form that a device keeps."""
    return ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def public_half(private_pem: bytes) -> str:
    """Return the public key of a private key, as SubjectPublicKeyInfo PEM."""
    key = serialization.load_pem_private_key(private_pem, None)
    return (
        key.public_key()
        .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        .decode()
    )
