"""Issue a certificate: from a request to a candidate, a device that is signed but not registered.

Called by `provisioning.service` in its signing threads and by `provisioning.bulk` in its processes.
Checks and signatures take most of the time of provisioning. They must never use the database, so
that any thread or process can run them. `provisioning.registration` decides if a candidate becomes
a device.
"""

import secrets
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from sqlalchemy import Connection

from birthmark_sma.authority.access.store import AccessKey
from birthmark_sma.authority.acts.actor import Actor
from birthmark_sma.authority.ca.ceremony import random_serial_number
from birthmark_sma.authority.ca.issuers import Issuer, OpenIssuers
from birthmark_sma.authority.devices.store import Device
from birthmark_sma.authority.kek.wrapping import NucHashIndex
from birthmark_sma.authority.key_tables.cache import KeyTableCache
from birthmark_sma.authority.key_tables.device_keys import DeviceKeys, current_keys
from birthmark_sma.authority.provisioning.table_key_encryption import seal_table_keys
from birthmark_sma.errors import (
    DeviceDescriptionRefusedError,
    IssuerChangedError,
    KeyEncryptionKeyRefusedError,
    KeyRefusedError,
)
from birthmark_sma.pki import certificates, csr, profiles
from birthmark_sma.pki.keys import key_policy
from birthmark_sma.pki.keys.key_policy import DeviceKey, KeyEncryptionKey
from birthmark_sma.pki.keys.recipient_key import check_recipient
from birthmark_sma.pki.names import check_device_serial
from birthmark_sma.protocol.camera_token import NUC_HASH_BYTES
from birthmark_sma.protocol.key_table import assign_tables
from birthmark_sma.protocol.verdict import DeviceStatus

MAX_DESCRIPTION = 50
"""The maximum length of a device family or app version, in characters."""


@dataclass(frozen=True, slots=True)
class ProvisioningRequest:
    """A request to provision a device, with exactly one of `device_public_key` and `csr`, both PEM.

    `nuc_hash` is the device's own, 32 bytes, or None to get a simulated one.
    """

    device_serial: str
    device_family: str
    device_public_key: str | None = None
    csr: str | None = None
    app_version: str | None = None
    nuc_hash: bytes | None = field(default=None, repr=False)
    key_encryption_public_key: str | None = None
    idempotency_key: str | None = field(default=None, repr=False)
    enrolled_with: AccessKey | None = None
    """The access key of the request; None if the server needs none."""
    actor: Actor | None = None
    """The operator who provisions the device; None if it asks for itself. The trail of acts has
    operators alone."""


@dataclass(frozen=True, slots=True)
class Provisioned:
    """The response to a device: NUC hash and table keys in the clear, or `sealed_secrets` (JWE)."""

    device_certificate: str
    certificate_chain: tuple[str, ...]
    table_assignments: tuple[int, ...]
    provisioning_id: str
    provisioned_at: datetime
    simulated_nuc_hash: str | None = field(default=None, repr=False)
    table_keys: dict[str, str] | None = field(default=None, repr=False)
    sealed_secrets: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class CheckedRequest:
    """A request that passed all checks that need no database.

    `nuc_hash_index` is the HMAC of the NUC hash. Fingerprints are SHA-256, 32 bytes.
    """

    request: ProvisioningRequest
    public_key: DeviceKey
    public_key_fingerprint: bytes
    recipient: KeyEncryptionKey | None
    recipient_fingerprint: bytes | None
    nuc_hash: bytes = field(repr=False)
    nuc_hash_index: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class IssuedDevice:
    """A device with a signed certificate that is not registered yet, and the response to it."""

    request: ProvisioningRequest
    device: Device
    answer: Provisioned
    recipient_fingerprint: bytes | None = None
    """The SHA-256 of the recipient key's DER SubjectPublicKeyInfo; None without such a key."""
    replaces: str | None = None
    """The serial number of the device's current certificate for a re-enrolment; None for a new
    device."""

    @property
    def provisioning_id(self) -> str:
        """Return the id of this candidate. A repetition of the same request gets another id."""
        return self.device.provisioning_id


_one_rsa_key_at_a_time = threading.Lock()


def check_is_secret(key: DeviceKey | KeyEncryptionKey) -> None:
    """Raise KeyRefusedError if the private key is weak or public.

    The check of an RSA key holds the interpreter's lock for long. A lock lets one thread check at a
    time, and the check yields to other threads. Measured: an event loop beside 12 threads without
    both took 160 ms for work that takes 12 ms with them.
    """
    if not isinstance(key, rsa.RSAPublicKey):
        key_policy.check_is_secret(key)
        return
    with _one_rsa_key_at_a_time:
        key_policy.check_is_secret(key, _let_others_in)


def _let_others_in() -> None:
    time.sleep(0)  # releases the interpreter's lock


class DeviceIssuer:
    """Makes candidates. Safe to use from any thread, and in a forked process."""

    profile = profiles.DEVICE

    def __init__(
        self, table_cache: KeyTableCache, nuc_hash_index: NucHashIndex, issuers: OpenIssuers
    ) -> None:
        self._table_cache = table_cache
        self._nuc_hash_index = nuc_hash_index
        self.issuers = issuers
        # Key tables must be assigned unpredictably (`assign_tables`), never with `random.Random`.
        self._random = secrets.SystemRandom()

    def follow_changes(self, connection: Connection) -> None:
        """Read the CAs and the key tables again if they changed. Call it before `make`."""
        self.issuers.poll(connection)
        self._table_cache.poll(connection)

    @property
    def takes_long(self) -> bool:
        """Return True if a signature takes about a millisecond (RSA), while other threads run."""
        return self.issuers.active.signer.takes_long

    def check(self, request: ProvisioningRequest) -> CheckedRequest:
        """Check everything about a request that needs no database.

        Raises PkiError for the serial, the CSR or a key, and DeviceDescriptionRefusedError for the
        family or the app version.
        """
        check_device_serial(request.device_serial)
        _check_description("device_family", request.device_family)
        _check_description("app_version", request.app_version)
        asked = None if request.csr is None else csr.load(request.csr)
        public_key = self._check_device_key(request, asked)
        recipient = self._check_recipient(request, asked, public_key)
        nuc_hash = request.nuc_hash or secrets.token_bytes(NUC_HASH_BYTES)
        return CheckedRequest(
            request=request,
            public_key=public_key,
            public_key_fingerprint=key_policy.fingerprint(public_key),
            recipient=recipient,
            recipient_fingerprint=None if recipient is None else key_policy.fingerprint(recipient),
            nuc_hash=nuc_hash,
            nuc_hash_index=self._nuc_hash_index.of(nuc_hash),
        )

    def make(
        self, checked: CheckedRequest, now: datetime, replaced: Device | None = None
    ) -> IssuedDevice:
        """Sign the certificate, assign key tables, and build the response.

        A re-enrolment of the device `replaced` keeps its key tables, and so its anonymity set.
        Raises IssuerExpiredError if the intermediate's certificate is not valid at `now`.
        """
        request = checked.request
        issuer = self.issuers.active
        certificate = self.issue_certificate(checked, issuer, now)
        table_ids = (
            assign_tables(self._table_cache.sizes, self._random.sample)
            if replaced is None
            else replaced.table_assignments
        )
        keys = self.current_keys_of(table_ids)
        device = Device(
            device_serial=request.device_serial,
            nuc_hash=checked.nuc_hash_index,
            table_assignments=table_ids,
            device_certificate=_pem(certificate),
            certificate_serial=f"{certificate.serial_number:x}",
            device_public_key=_public_pem(checked.public_key),
            public_key_fingerprint=checked.public_key_fingerprint,
            device_family=request.device_family,
            app_version=request.app_version,
            status=DeviceStatus.ACTIVE,
            provisioning_id=f"PROV-{now:%Y%m%d}-{secrets.token_hex(8).upper()}",
            provisioned_at=now,
            table_epochs=keys.epochs,
            certificate_expires_at=certificate.not_valid_after_utc,
            certificate_issuer=issuer.name,
        )
        answer = self._answer(device, checked, keys.table_keys)
        return IssuedDevice(
            request,
            device,
            answer,
            checked.recipient_fingerprint,
            replaces=None if replaced is None else replaced.certificate_serial,
        )

    def _check_device_key(
        self, request: ProvisioningRequest, asked: x509.CertificateSigningRequest | None
    ) -> DeviceKey:
        if asked is not None:
            key = csr.verify(asked, request.device_serial)
        else:
            key = key_policy.check_key(key_policy.load_public_key(request.device_public_key or ""))
        self._check_is_secret(key)
        return key

    def _check_recipient(
        self,
        request: ProvisioningRequest,
        asked: x509.CertificateSigningRequest | None,
        device_key: DeviceKey,
    ) -> KeyEncryptionKey | None:
        """Return the key to encrypt the device's secrets to, or None if the request has none.

        `asked` is the verified CSR, which must name the recipient key (`pki.keys.recipient_key`).
        Raises KeyEncryptionKeyRefusedError.
        """
        if request.key_encryption_public_key is None:
            check_recipient(asked, None)
            return None
        try:
            key = key_policy.check_key_encryption_key(
                key_policy.load_public_key(request.key_encryption_public_key)
            )
            self._check_is_secret(key)
            if key_policy.are_one_key(device_key, key):
                raise KeyRefusedError(
                    "This is the key that the device signs with: make a second key pair to decrypt"
                    " with."
                )
        except KeyRefusedError as error:  # the type of the error tells which key was refused
            raise KeyEncryptionKeyRefusedError(*error.args) from None
        check_recipient(asked, key)
        return key

    def _check_is_secret(self, key: DeviceKey | KeyEncryptionKey) -> None:
        check_is_secret(key)
        # A device must never get a certificate for a key of a CA.
        if key_policy.fingerprint(key) in self.issuers.key_fingerprints:
            raise KeyRefusedError("This is a key of the authority itself: send the device's own.")

    def issue_certificate(
        self, checked: CheckedRequest, issuer: Issuer, now: datetime
    ) -> x509.Certificate:
        """Sign a certificate for a checked request. Raises IssuerExpiredError as `make` does."""
        prepared = certificates.prepare_device(
            checked.public_key,
            checked.request.device_serial,
            issuer=issuer.certificate,
            now=now,
            serial_number=random_serial_number(),
            publication=issuer.publication,
            profile=self.profile,
        )
        return certificates.sign(prepared, issuer.signer, issuer=issuer.certificate)

    def _answer(
        self, device: Device, checked: CheckedRequest, table_keys: Mapping[str, str]
    ) -> Provisioned:
        answer = Provisioned(
            device_certificate=device.device_certificate,
            certificate_chain=self.chain_of(device),
            table_assignments=device.table_assignments,
            provisioning_id=device.provisioning_id,
            provisioned_at=device.provisioned_at,
        )
        nuc_hash = checked.nuc_hash.hex()
        if checked.recipient is None:
            return replace(answer, simulated_nuc_hash=nuc_hash, table_keys=dict(table_keys))
        secret = {"nuc_hash": nuc_hash, "table_keys": table_keys}
        return replace(answer, sealed_secrets=self.seal(device, checked.recipient, secret))

    def chain_of(self, device: Device) -> tuple[str, ...]:
        """Return the PEM certificates from the issuer of a device's certificate to its root.

        Raises IssuerChangedError if another process has just made the issuer.
        """
        issuer = self.issuers.issuer(device.certificate_issuer)
        if issuer is None:
            raise IssuerChangedError
        return issuer.chain

    def current_keys_of(self, table_ids: Sequence[int]) -> DeviceKeys:
        """Return the newest keys of these tables, with their epochs."""
        return current_keys(self._table_cache.keys, table_ids)

    def seal(
        self, device: Device, recipient: KeyEncryptionKey, secret: Mapping[str, object]
    ) -> str:
        """Return secrets of a device as compact JWE, bound to its serial and certificate."""
        certificate = x509.load_pem_x509_certificate(device.device_certificate.encode())
        bound = {
            "device_serial": device.device_serial,
            "certificate_sha256": certificate.fingerprint(hashes.SHA256()).hex(),
        }
        return seal_table_keys({**bound, **secret}, recipient)


def is_description(text: str) -> bool:
    """Return True if `text` is valid as a device family or app version."""
    return 1 <= len(text) <= MAX_DESCRIPTION and text.isprintable()


def _check_description(what: str, text: str | None) -> None:
    if text is not None and not is_description(text):
        raise DeviceDescriptionRefusedError(
            f"{what} has 1 to {MAX_DESCRIPTION} printable characters."
        )


def _public_pem(public_key: DeviceKey) -> str:
    return public_key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(Encoding.PEM).decode()
