"""Provision a device: certificate, three key tables, and a place in the register.

In this order: the request is checked, the certificate prepared, checked and signed, then device
and first answer are written in one transaction, and only then is there an answer. UNIQUE
constraints decide races; whoever loses has changed nothing.
"""

import asyncio
import hashlib
import json
import os
import secrets
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from sqlalchemy import Connection

from birthmark_sma.authority.ceremony import random_serial_number
from birthmark_sma.authority.group_commit import GroupCommit
from birthmark_sma.authority.key_encryption import OpenedSecrets
from birthmark_sma.authority.key_stock import KeyStock
from birthmark_sma.authority.table_keys_jwe import seal_table_keys
from birthmark_sma.errors import (
    BirthmarkError,
    ConflictError,
    DeviceAlreadyProvisionedError,
    DeviceDescriptionRefusedError,
    IdempotencyKeyReusedError,
    KeyEncryptionKeyRefusedError,
    KeyRefusedError,
    NucHashInUseError,
    PoolFullError,
    PublicKeyInUseError,
    ShuttingDownError,
)
from birthmark_sma.pki import csr, issue, key_policy
from birthmark_sma.pki.issue import Publication
from birthmark_sma.pki.key_policy import DeviceKey, KeyEncryptionKey
from birthmark_sma.pki.names import check_device_serial
from birthmark_sma.pki.signer import Signer
from birthmark_sma.protocol.camera_token import NUC_HASH_BYTES
from birthmark_sma.protocol.key_table import assign_tables
from birthmark_sma.protocol.verdict import DeviceStatus
from birthmark_sma.storage import devices, idempotency
from birthmark_sma.storage.devices import Device
from birthmark_sma.storage.engine import Database
from birthmark_sma.storage.idempotency import FirstAnswer

IDEMPOTENCY_PERIOD = timedelta(hours=24)
MAX_DESCRIPTION = 50
"""Characters of a device family or app version at most."""
_POOL_LIMIT = 1_000
_BATCH_LIMIT = 250


@dataclass(frozen=True, slots=True)
class ProvisioningRequest:
    """What a device asks with: exactly one of `device_public_key` and `csr`, both PEM.

    `nuc_hash` is the device's own, 32 bytes, or None to get a simulated one.
    """

    device_serial: str
    device_family: str
    device_public_key: str | None = None
    csr: str | None = None
    app_version: str | None = None
    nuc_hash: bytes | None = field(default=None, repr=False)
    key_encryption_public_key: str | None = None
    idempotency_key: str | None = None


@dataclass(frozen=True, slots=True)
class Provisioned:
    """What a device gets. `table_keys` or `table_keys_jwe` is None, never both."""

    device_certificate: str
    certificate_chain: tuple[str, ...]
    table_assignments: tuple[int, ...]
    provisioning_id: str
    provisioned_at: datetime
    simulated_nuc_hash: str = field(repr=False)
    table_keys: dict[str, str] | None = field(repr=False)
    table_keys_jwe: str | None = field(repr=False)


@dataclass(frozen=True, slots=True)
class Issuer:
    """The intermediate: its certificate, its key, the chain below devices, and where it is told."""

    certificate: x509.Certificate
    signer: Signer
    chain: tuple[str, ...]
    publication: Publication | None


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A device with a signed certificate that is not registered yet."""

    device: Device
    answer: Provisioned
    first_answer: FirstAnswer | None


class Provisioner:
    """Provisions devices, from any thread or event loop.

    Certificates are signed in a few threads, as RSA-4096 takes milliseconds of a core; one writer
    registers what they have ready.
    """

    def __init__(
        self, database: Database, stock: KeyStock, opened: OpenedSecrets, issuer: Issuer
    ) -> None:
        self._database = database
        self._stock = stock
        self._secrets = opened
        self._issuer = issuer
        self._random = secrets.SystemRandom()
        self._under_way = 0  # owned by the event loop
        self._signers = ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="signer")
        self._writer: GroupCommit[_Candidate, Provisioned] = GroupCommit(
            database,
            self._register,
            name="provisioning-writer",
            pool_limit=_POOL_LIMIT,
            batch_limit=_BATCH_LIMIT,
        )

    async def provision(self, request: ProvisioningRequest) -> Provisioned:
        """Provision a device from a coroutine; otherwise as `provision_device`."""
        if self._under_way >= _POOL_LIMIT:
            raise PoolFullError
        self._under_way += 1
        try:
            registering: Future[Provisioned] = await asyncio.wrap_future(self._start(request))
            return await asyncio.wrap_future(registering)
        finally:
            self._under_way -= 1

    def provision_device(self, request: ProvisioningRequest) -> Provisioned:
        """Provision a device and return what it needs, once that is durable.

        Raises PkiError for a key, CSR or serial that is refused, ConflictError where the serial,
        the public key or the NUC hash is registered, IdempotencyKeyReusedError, PoolFullError, and
        DatabaseUnavailableError. Sent again with the same idempotency key, it gives the first
        answer again.
        """
        return self._sign(request).result()

    def close(self) -> None:
        """Finish what is under way, then stop."""
        # In this order: a signing thread hands over to the writer before it ends.
        self._signers.shutdown()
        self._writer.close()

    def _start(self, request: ProvisioningRequest) -> "Future[Future[Provisioned]]":
        try:
            return self._signers.submit(self._sign, request)
        except RuntimeError:  # the executor's way of saying that it was shut down
            raise ShuttingDownError from None

    # --- in a signing thread

    def _sign(self, request: ProvisioningRequest) -> "Future[Provisioned]":
        """Prepare a device and hand it to the writer."""
        ready = self._prepare(request)
        if isinstance(ready, _Candidate):
            return self._writer.submit(ready)
        answered: Future[Provisioned] = Future()
        answered.set_result(ready)
        return answered

    def _prepare(self, request: ProvisioningRequest) -> Provisioned | _Candidate:
        """Check a request and sign its certificate, or return the first answer to it."""
        check_device_serial(request.device_serial)
        _check_description("device_family", request.device_family)
        _check_description("app_version", request.app_version)
        public_key = _device_key(request)
        recipient = _recipient(request)
        nuc_hash = request.nuc_hash or secrets.token_bytes(NUC_HASH_BYTES)
        nuc_hash_index = self._secrets.nuc_hash_index.of(nuc_hash)
        fingerprint = hashlib.sha256(_der(public_key)).digest()
        now = datetime.now(UTC)

        # A refusal that is certain already must not cost a signature. The writer decides the rest.
        with self._database.read() as connection:
            conflict = _conflict(connection, request.device_serial, fingerprint, nuc_hash_index)
            # In this order: where the conflict is the first answer's own, that answer is there now.
            known = self._first_answer(connection, request, now)
        if known is not None:
            return known
        if conflict is not None:
            raise conflict

        certificate = self._issue(public_key, request.device_serial, now)
        assignments = assign_tables(self._stock.sizes, self._random.sample)
        device = Device(
            device_serial=request.device_serial,
            nuc_hash=nuc_hash_index,
            table_assignments=assignments,
            device_certificate=_pem(certificate),
            certificate_serial=f"{certificate.serial_number:x}",
            device_public_key=_public_pem(public_key),
            public_key_fingerprint=fingerprint,
            device_family=request.device_family,
            app_version=request.app_version,
            status=DeviceStatus.ACTIVE,
            provisioning_id=f"PROV-{now:%Y%m%d}-{secrets.token_hex(8).upper()}",
            provisioned_at=now,
        )
        answer = self._answer(device, nuc_hash, recipient)
        return _Candidate(device, answer, self._sealed(request, answer, now))

    def _issue(self, public_key: DeviceKey, device_serial: str, now: datetime) -> x509.Certificate:
        prepared = issue.prepare_device(
            public_key,
            device_serial,
            issuer=self._issuer.certificate,
            now=now,
            serial_number=random_serial_number(),
            publication=self._issuer.publication,
        )
        return issue.sign(prepared, self._issuer.signer, issuer=self._issuer.certificate)

    def _answer(
        self, device: Device, nuc_hash: bytes, recipient: KeyEncryptionKey | None
    ) -> Provisioned:
        table_keys = {
            str(table_id): self._stock.master_key(table_id).hex()
            for table_id in device.table_assignments
        }
        return Provisioned(
            device_certificate=device.device_certificate,
            certificate_chain=self._issuer.chain,
            table_assignments=device.table_assignments,
            provisioning_id=device.provisioning_id,
            provisioned_at=device.provisioned_at,
            simulated_nuc_hash=nuc_hash.hex(),
            table_keys=table_keys if recipient is None else None,
            table_keys_jwe=None if recipient is None else seal_table_keys(table_keys, recipient),
        )

    # --- first answers

    def _first_answer(
        self, connection: Connection, request: ProvisioningRequest, now: datetime
    ) -> Provisioned | None:
        """Return the answer that this request got before. Raises IdempotencyKeyReusedError."""
        if request.idempotency_key is None:
            return None
        key = _digest(request.idempotency_key)
        found = idempotency.find(connection, [key]).get(key)
        if found is None or found.created_at <= now - IDEMPOTENCY_PERIOD:
            return None
        return self._open(found, _request_digest(request))

    def _sealed(
        self, request: ProvisioningRequest, answer: Provisioned, now: datetime
    ) -> FirstAnswer | None:
        if request.idempotency_key is None:
            return None
        key = _digest(request.idempotency_key)
        kek = self._secrets.kek
        return FirstAnswer(
            idempotency_key=key,
            request_digest=_request_digest(request),
            sealed_response=kek.wrap(json.dumps(asdict(answer), default=str).encode(), key),
            kek_id=kek.kek_id,
            created_at=now,
        )

    def _open(self, found: FirstAnswer, request_digest: bytes) -> Provisioned:
        if found.request_digest != request_digest:
            raise IdempotencyKeyReusedError
        fields = json.loads(self._secrets.kek.unwrap(found.sealed_response, found.idempotency_key))
        return Provisioned(
            **fields
            | {
                "certificate_chain": tuple(fields["certificate_chain"]),
                "table_assignments": tuple(fields["table_assignments"]),
                "provisioned_at": datetime.fromisoformat(fields["provisioned_at"]),
            }
        )

    # --- in the writer thread

    def _register(
        self, transaction: Connection, candidates: Sequence[_Candidate]
    ) -> list[Provisioned | BirthmarkError]:
        """Register a batch. Each candidate gets its answer, its first answer, or its conflict."""
        idempotency.forget_before(transaction, datetime.now(UTC) - IDEMPOTENCY_PERIOD)
        # All programs take the same order, so that two of them do not wait for each other.
        ordered = sorted(candidates, key=lambda candidate: candidate.device.device_serial)
        repeated = self._claim_keys(transaction, ordered)
        new = [c for c in ordered if c.device.provisioning_id not in repeated]
        added = devices.add_devices(transaction, [c.device for c in new]) if new else set()
        refused = [c for c in new if c.device.provisioning_id not in added]
        self._release_keys(transaction, refused)
        # Who repeats a request that was refused in this very batch is refused as well.
        freed = {c.first_answer.idempotency_key for c in refused if c.first_answer is not None}
        refused += [
            c
            for c in ordered
            if isinstance(repeated.get(c.device.provisioning_id), Provisioned)
            and c.first_answer is not None
            and c.first_answer.idempotency_key in freed
        ]
        outcomes: dict[str, Provisioned | BirthmarkError] = dict(repeated)
        outcomes |= {c.device.provisioning_id: c.answer for c in new}
        outcomes |= {c.device.provisioning_id: _loser(transaction, c.device) for c in refused}
        return [outcomes[c.device.provisioning_id] for c in candidates]

    def _claim_keys(
        self, transaction: Connection, candidates: Sequence[_Candidate]
    ) -> dict[str, Provisioned | BirthmarkError]:
        """Keep the first answers of a batch; return the outcome of those that are repetitions."""
        claims = [c.first_answer for c in candidates if c.first_answer is not None]
        if not claims:
            return {}
        idempotency.claim(transaction, claims)
        kept = idempotency.find(transaction, [claim.idempotency_key for claim in claims])
        outcomes: dict[str, Provisioned | BirthmarkError] = {}
        for candidate in candidates:
            claim = candidate.first_answer
            if claim is None or kept[claim.idempotency_key] == claim:
                continue
            try:
                outcome: Provisioned | BirthmarkError = self._open(
                    kept[claim.idempotency_key], claim.request_digest
                )
            except IdempotencyKeyReusedError as error:
                outcome = error
            outcomes[candidate.device.provisioning_id] = outcome
        return outcomes

    @staticmethod
    def _release_keys(transaction: Connection, refused: Sequence[_Candidate]) -> None:
        keys = [c.first_answer.idempotency_key for c in refused if c.first_answer is not None]
        if keys:
            idempotency.release(transaction, keys)


def _loser(transaction: Connection, device: Device) -> ConflictError:
    conflict = _conflict(
        transaction, device.device_serial, device.public_key_fingerprint, device.nuc_hash
    )
    # Serial and provisioning id are the only other UNIQUE columns, and both are 64 random bits.
    return conflict or DeviceAlreadyProvisionedError()


def _conflict(
    connection: Connection, device_serial: str, fingerprint: bytes, nuc_hash: bytes
) -> ConflictError | None:
    """Say what about a device is registered already, if anything."""
    if devices.find_device(connection, device_serial) is not None:
        return DeviceAlreadyProvisionedError()
    if devices.holds_public_key(connection, fingerprint):
        return PublicKeyInUseError()
    if devices.holds_nuc_hash(connection, nuc_hash):
        return NucHashInUseError()
    return None


def _check_description(what: str, text: str | None) -> None:
    if text is not None and not (1 <= len(text) <= MAX_DESCRIPTION and text.isprintable()):
        raise DeviceDescriptionRefusedError(
            f"{what} has 1 to {MAX_DESCRIPTION} printable characters."
        )


def _device_key(request: ProvisioningRequest) -> DeviceKey:
    if request.csr is not None:
        return csr.verify(request.csr, request.device_serial)
    return key_policy.check_key(key_policy.load_public_key(request.device_public_key or ""))


def _recipient(request: ProvisioningRequest) -> KeyEncryptionKey | None:
    if request.key_encryption_public_key is None:
        return None
    try:
        key = key_policy.load_public_key(request.key_encryption_public_key)
        return key_policy.check_key_encryption_key(key)
    except KeyRefusedError as error:
        raise KeyEncryptionKeyRefusedError(*error.args) from None


def _request_digest(request: ProvisioningRequest) -> bytes:
    """Return what is the same for the same request, whatever its Idempotency-Key."""
    fields = asdict(replace(request, idempotency_key=None, nuc_hash=None))
    fields["nuc_hash"] = request.nuc_hash.hex() if request.nuc_hash else None
    return _digest(json.dumps(fields, sort_keys=True))


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def _der(public_key: DeviceKey) -> bytes:
    return public_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _public_pem(public_key: DeviceKey) -> str:
    return public_key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(Encoding.PEM).decode()
