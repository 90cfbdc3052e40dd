"""Provision a camera exactly once, even if the process is interrupted many times.

1. The complete request is on disk before a byte is sent: key pairs, request body, Idempotency-Key
   and enrolment key. A restarted camera sends exactly the same request, and the authority returns
   exactly the same response, for 24 hours.
2. The response is checked: it must be for this camera's key and serial, and its keys must have the
   right form. A 200 from a captive portal does not count.
3. The response replaces the request on disk in one step.

`camera` calls `begin` and `provision`. This module must never write files itself: it calls `save`.
"""

import json
import re
import secrets
import ssl
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

import httpx2
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from birthmark_sma.device.bounded_http import (
    Answer,
    HearTime,
    bounded_post,
    is_this_machine,
    response_time,
    retry_after,
)
from birthmark_sma.device.state import Identity, Pending
from birthmark_sma.device.table_key_decryption import open_table_keys
from birthmark_sma.errors import (
    AuthorityAwayError,
    ConfigurationError,
    DeviceSerialRefusedError,
    OtherDeviceError,
    PathRefusedError,
    ProtocolError,
    ProvisioningRefusedError,
)
from birthmark_sma.pki.keys.recipient_key import recipient_urn
from birthmark_sma.pki.names import check_device_serial, requested_subject
from birthmark_sma.pki.path_validation import verify_path
from birthmark_sma.protocol.camera_token import NUC_HASH_BYTES
from birthmark_sma.protocol.key_derivation import MASTER_KEY_BYTES
from birthmark_sma.protocol.key_table import (
    MAX_WIRE_INTEGER,
    PROTOTYPE_SIZES,
    STANDARD_SIZES,
    TABLES_PER_DEVICE,
)

PATH = "/api/v1/devices/provision"
MAX_ANSWER_BYTES = 262_144
CONNECT_SECONDS = 10
ANSWER_SECONDS = 70
"""Longer than the 60 seconds after which the authority itself gives up."""
ATTEMPT_SECONDS = CONNECT_SECONDS + ANSWER_SECONDS
"""The time limit of a whole attempt, however slowly bytes arrive."""
_FIRST_WAIT_SECONDS = 1.0
_LONGEST_WAIT_SECONDS = 60.0
_TRY_AGAIN = frozenset({408, 425, 429})  # request timeout, too early, too many requests
_NOT_WITH_THIS_KEY = frozenset({401, 403})
_KEY_ENCRYPTION = "key_encryption_public_key"
_SECRETS = frozenset({"device_serial", "certificate_sha256", "nuc_hash", "table_keys"})

_VISIBLE = re.compile(r"[!-~]+")
_FINGERPRINT = re.compile(r"(?:[0-9a-fA-F]{2}:?){31}[0-9a-fA-F]{2}")

_chance = secrets.SystemRandom()


@dataclass(frozen=True, slots=True)
class Enrolment:
    """The app's arguments for the provisioning of a camera.

    `url` is the URL of the authority: https, or http on this machine only. `nuc_hash` is the
    sensor's own hash of 32 bytes, if known. `keys_per_table` is the size of the authority's tables,
    which no response contains: set it unless it is 1,000 or, for a prototype, 100 (see `keys_in`).
    `root_fingerprint` pins the authority: SHA-256 of the root certificate in 64 hex digits.
    `patience` is the time in seconds during which new attempts start before AuthorityAwayError; the
    last attempt may take 80 seconds more.
    """

    url: str
    device_serial: str
    device_family: str
    enrolment_key: str | None = field(default=None, repr=False)
    app_version: str | None = None
    nuc_hash: bytes | None = field(default=None, repr=False)
    keys_per_table: int | None = None
    root_fingerprint: str | None = None
    ssl_context: ssl.SSLContext | None = None
    patience: float = 60.0

    def __post_init__(self) -> None:
        try:
            check_device_serial(self.device_serial)
        except DeviceSerialRefusedError as error:
            raise ConfigurationError(str(error)) from None
        try:
            url = httpx2.URL(self.url)
        except httpx2.InvalidURL:
            raise ConfigurationError("The authority's URL cannot be read.") from None
        if url.scheme != "https" and not (url.scheme == "http" and is_this_machine(url.host)):
            raise ConfigurationError(
                "The authority's URL begins with https://, as keys come back from there; http:// is"
                " for this very machine."
            )
        if not url.host:
            raise ConfigurationError("The authority's URL names no host.")
        if self.enrolment_key is not None and not _VISIBLE.fullmatch(self.enrolment_key):
            raise ConfigurationError(
                "An enrolment key is visible ASCII, without spaces, not empty."
            )
        if self.nuc_hash is not None and len(self.nuc_hash) != NUC_HASH_BYTES:
            raise ConfigurationError(f"A NUC hash has {NUC_HASH_BYTES} bytes.")
        if self.root_fingerprint is not None and not _FINGERPRINT.fullmatch(self.root_fingerprint):
            raise ConfigurationError("A root's fingerprint is SHA-256 in hex, colons or not.")
        if self.keys_per_table is not None and not 1 <= self.keys_per_table <= MAX_WIRE_INTEGER:
            raise ConfigurationError("A key table has at least 1 key.")

    def details(self) -> dict[str, str]:
        """Return the fields of the request that the app chose."""
        given = {
            "device_serial": self.device_serial,
            "device_family": self.device_family,
            "app_version": self.app_version,
            "nuc_hash": None if self.nuc_hash is None else self.nuc_hash.hex(),
        }
        return {name: value for name, value in given.items() if value is not None}


class UnusableAnswerError(Exception):
    """A 200 with content that the camera did not ask for. Only `_Asking` handles it."""


def begin(enrolment: Enrolment) -> Pending:
    """Generate a camera's keys and its request. Nothing is sent or written."""
    signing, key_encryption = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    return Pending(
        device_serial=enrolment.device_serial,
        request=_request(enrolment, signing, key_encryption),
        idempotency_key=secrets.token_urlsafe(24),
        enrolment_key=enrolment.enrolment_key,
        private_key=_private_pem(signing),
        key_encryption_private_key=_private_pem(key_encryption),
        nonce_secret=secrets.token_hex(32),
    )


def provision(
    pending: Pending,
    enrolment: Enrolment,
    save: Callable[[Pending], None],
    *,
    client: httpx2.Client | None = None,
    hear_time: HearTime,
) -> Identity:
    """Send the request until the authority answers, and return the camera's identity.

    `pending` must be on disk. `save` writes a changed request to disk before it is sent.
    `hear_time` is called with the time in the authority's response.

    Raises OtherDeviceError if the request on disk is for another serial, AuthorityAwayError after
    `patience` seconds, ProvisioningRefusedError, and ConfigurationError if no request can be sent.
    """
    if pending.device_serial != enrolment.device_serial:
        raise OtherDeviceError(
            f"This directory began as camera {pending.device_serial!r}. Use another directory for"
            f" {enrolment.device_serial!r}."
        )
    with _client(enrolment, client) as http:
        asking = _Asking(http, enrolment)
        while True:
            try:
                identity, answered_at = asking.until_answered(pending)
                if answered_at is not None:
                    hear_time(answered_at, "the authority")
                return identity
            except ProvisioningRefusedError as refused:
                # Replace the request only after a definite refusal: before, the authority may have
                # accepted it.
                changed = _changed(pending, enrolment, refused)
                if changed is None:
                    raise
                pending = changed
                save(pending)


class _Asking:
    """Sends one request until it is answered or the app's patience ends."""

    def __init__(self, http: httpx2.Client, enrolment: Enrolment) -> None:
        self._http = http
        self._enrolment = enrolment
        self._deadline = time.monotonic() + enrolment.patience

    def until_answered(self, pending: Pending) -> tuple[Identity, datetime | None]:
        """Return the identity from the response, and the time in the response."""
        wait = _FIRST_WAIT_SECONDS
        while True:
            asked_to_wait: float | None = None
            try:
                answer = self._ask(pending)
                status, _, content = answer
                if status == httpx2.codes.OK:
                    return make_identity(pending, content, self._enrolment), response_time(answer)
                if not _may_change(status):
                    raise _refusal(status, content)
                why = f"it answers with status {status}"
                asked_to_wait = retry_after(answer)
            except (httpx2.LocalProtocolError, httpx2.UnsupportedProtocol) as error:
                # Nothing was sent, and no retry would change that.
                raise ConfigurationError(f"The authority cannot be asked: {error}.") from None
            except httpx2.HTTPError as error:
                why = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            except UnusableAnswerError as error:
                why = str(error)
            # Half of the wait is random, so that cameras that started together do not retry
            # together.
            pause = max(wait * _chance.uniform(0.5, 1.0), asked_to_wait or 0.0)
            if time.monotonic() + pause > self._deadline:
                raise AuthorityAwayError(
                    f"The authority gives no answer ({why}). Nothing is lost: start again later,"
                    " best within 24 hours.",
                    retry_after=asked_to_wait,
                )
            time.sleep(pause)
            wait = min(2 * wait, _LONGEST_WAIT_SECONDS)

    def _ask(self, pending: Pending) -> Answer:
        headers = {"Content-Type": "application/json", "Idempotency-Key": pending.idempotency_key}
        # Send no empty key: no header can carry it. The authority then answers 401, and the app's
        # key replaces it.
        if pending.enrolment_key:
            headers["Authorization"] = f"Bearer {pending.enrolment_key}"
        return bounded_post(
            self._http,
            self._enrolment.url.rstrip("/") + PATH,
            pending.request.encode(),
            headers,
            seconds=ATTEMPT_SECONDS,
            max_bytes=MAX_ANSWER_BYTES,
        )


def make_identity(pending: Pending, answer: bytes, enrolment: Enrolment) -> Identity:
    """Check a response, and return the camera's identity.

    Raises UnusableAnswerError with the reason.
    """
    try:
        fields: dict[str, Any] = json.loads(answer)
        leaf = _certificate(fields["device_certificate"])
        intermediate, root = (_certificate(pem) for pem in fields["certificate_chain"])
        certified = leaf.public_key()
        secret = open_table_keys(
            _text(fields["sealed_secrets"]), _load_private(pending.key_encryption_private_key)
        )
        nuc_hash, table_keys = _secrets(secret, fields)
        provisioning_id = _text(fields["provisioning_id"])
    except (KeyError, TypeError, ValueError, RecursionError, UnsupportedAlgorithm, ProtocolError):
        raise UnusableAnswerError("what answers there is no authority of this kind") from None
    if certified != _load_private(pending.private_key).public_key():
        raise UnusableAnswerError("the certificate in its answer is for another key")
    fingerprint = root.fingerprint(hashes.SHA256()).hex()
    pinned = enrolment.root_fingerprint
    if pinned is not None and fingerprint != pinned.lower().replace(":", ""):
        raise UnusableAnswerError("its root certificate is not the one that the app expects")
    try:
        # The camera's clock may be wrong, so the path is checked at a time from the certificates
        # themselves. An impossible date, such as in the year 0, raises ValueError.
        valid_from = max(each.not_valid_before_utc for each in (leaf, intermediate, root))
        named = verify_path(leaf, [intermediate], root=root, now=valid_from)
    except (PathRefusedError, ValueError):
        raise UnusableAnswerError("the certificates in its answer are no chain") from None
    if named != pending.device_serial:
        raise UnusableAnswerError("the certificate in its answer is for another camera")
    # The secrets name their device and certificate. Others belong to another camera or to another
    # response, which an attacker on the network may have recorded.
    sealed_for = (secret["device_serial"], secret["certificate_sha256"])
    if sealed_for != (pending.device_serial, leaf.fingerprint(hashes.SHA256()).hex()):
        raise UnusableAnswerError("the secrets in its answer are not those of this certificate")
    return Identity(
        device_serial=pending.device_serial,
        provisioning_id=provisioning_id,
        device_certificate=_pem(leaf),
        certificate_chain=(_pem(intermediate), _pem(root)),
        private_key=pending.private_key,
        nuc_hash=nuc_hash,
        table_keys=table_keys,
        nonce_secret=pending.nonce_secret,
        keys_per_table=enrolment.keys_per_table or keys_in(table_keys),
    )


def keys_in(tables: Iterable[str]) -> int:
    """Return the number of keys per table, as far as the table ids reveal it.

    A prototype has only the tables 0 to 9. A camera of a full authority whose three tables are all
    among them (one in twenty million) uses only the first 100 keys of each. Its tokens pass as
    well.
    """
    is_prototype = all(PROTOTYPE_SIZES.has_table(int(table)) for table in tables)
    return (PROTOTYPE_SIZES if is_prototype else STANDARD_SIZES).keys_per_table


def _secrets(secret: dict[str, Any], fields: dict[str, Any]) -> tuple[str, dict[str, str]]:
    """Return the NUC hash and the master keys of the three tables, in hex.

    Raises ValueError, KeyError or TypeError if a field is not as expected.
    """
    table_keys, tables = secret["table_keys"], fields["table_assignments"]
    if set(secret) != _SECRETS or not isinstance(table_keys, dict):
        raise ValueError
    if not all(type(table) is int and 0 <= table <= MAX_WIRE_INTEGER for table in tables):
        raise ValueError
    if len(table_keys) != TABLES_PER_DEVICE or set(table_keys) != {str(table) for table in tables}:
        raise ValueError
    return _hex(secret["nuc_hash"], NUC_HASH_BYTES), {
        table: _hex(master_key, MASTER_KEY_BYTES) for table, master_key in table_keys.items()
    }


def _changed(
    pending: Pending, enrolment: Enrolment, refused: ProvisioningRefusedError
) -> Pending | None:
    """Return a request to replace a refused one, if the app's arguments have changed; else None."""
    if refused.status in _NOT_WITH_THIS_KEY and enrolment.enrolment_key != pending.enrolment_key:
        return replace(pending, enrolment_key=enrolment.enrolment_key)
    asked = json.loads(pending.request)
    # Requests of earlier versions of this program do not name their recipient key.
    outdated = not x509.load_pem_x509_csr(asked["csr"].encode()).extensions
    asked = {name: asked[name] for name in asked if name not in {"csr", _KEY_ENCRYPTION}}
    differs = outdated or asked != enrolment.details()
    if refused.status == httpx2.codes.UNPROCESSABLE_CONTENT and differs:
        return replace(
            pending,
            request=_request(
                enrolment,
                _load_private(pending.private_key),
                _load_private(pending.key_encryption_private_key),
            ),
            idempotency_key=secrets.token_urlsafe(24),
            enrolment_key=enrolment.enrolment_key,
        )
    return None


def _request(
    enrolment: Enrolment,
    signing: ec.EllipticCurvePrivateKey,
    key_encryption: ec.EllipticCurvePrivateKey,
) -> str:
    # The CSR's signature covers the name and the recipient key, so an attacker on the network
    # cannot change them.
    recipient = key_encryption.public_key()
    named = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(recipient_urn(recipient))])
    csr = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(requested_subject(enrolment.device_serial))
        .add_extension(named, critical=False)
    )
    public = recipient.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return json.dumps(
        enrolment.details()
        | {
            "csr": _pem(csr.sign(signing, hashes.SHA256())),
            _KEY_ENCRYPTION: public.decode(),
        }
    )


def _may_change(status: int) -> bool:
    """Return True if a retry may get another answer. A redirect comes from a captive portal."""
    return status in _TRY_AGAIN or 300 <= status < 400 or status >= 500


def _refusal(status: int, content: bytes) -> ProvisioningRefusedError:
    try:
        problem = json.loads(content)
        kind = str(problem["type"]).rpartition(":")[2]
        detail = str(problem["detail"])
    except (KeyError, TypeError, ValueError, RecursionError):
        kind, detail = "unknown", "what answers there is no authority of this kind."
    advice = _ADVICE.get(kind, "")
    return ProvisioningRefusedError(
        f"The authority refuses ({status}): {detail}{advice}", status=status, kind=kind
    )


_ADVICE = {
    "device-already-provisioned": (
        " Either another camera has this serial, or this one was answered more than 24 hours ago"
        " and never heard it. Have the operator revoke it, and begin again under a new serial in an"
        " empty directory."
    ),
}


def _client(
    enrolment: Enrolment, given: httpx2.Client | None
) -> AbstractContextManager[httpx2.Client]:
    if given is not None:
        return nullcontext(given)
    timeout = httpx2.Timeout(ANSWER_SECONDS, connect=CONNECT_SECONDS)
    return httpx2.Client(timeout=timeout, verify=enrolment.ssl_context or True)


def _load_private(pem: str) -> ec.EllipticCurvePrivateKey:
    key = serialization.load_pem_private_key(pem.encode(), password=None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise TypeError("a camera's keys are EC keys")
    return key


def _private_pem(key: ec.EllipticCurvePrivateKey) -> str:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),  # `state` seals the whole file
    ).decode()


def _certificate(pem: object) -> x509.Certificate:
    try:
        # InvalidVersion is no ValueError in this library, so callers would not catch it.
        return x509.load_pem_x509_certificate(_text(pem).encode())
    except x509.InvalidVersion:
        raise ValueError from None


def _pem(thing: x509.Certificate | x509.CertificateSigningRequest) -> str:
    return thing.public_bytes(serialization.Encoding.PEM).decode()


def _hex(value: object, length: int) -> str:
    content = bytes.fromhex(_text(value))
    if len(content) != length:
        raise ValueError
    return content.hex()


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value
