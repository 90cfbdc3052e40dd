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
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime

import httpx2
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from birthmark_sma.device.bounded_http import (
    Answer,
    HearTime,
    bounded_post,
    describe,
    open_client,
    response_time,
    retry_after,
)
from birthmark_sma.device.certification import (
    UnusableAnswerError,
    make_csr,
    new_key,
    private_pem,
    public_pem,
)
from birthmark_sma.device.provisioning_response import make_identity
from birthmark_sma.device.state import Identity, Pending, load_private_key
from birthmark_sma.errors import (
    AuthorityAwayError,
    ConfigurationError,
    DeviceSerialRefusedError,
    OtherDeviceError,
    ProvisioningRefusedError,
)
from birthmark_sma.http_requests import draw_pause
from birthmark_sma.pki.names import check_device_serial
from birthmark_sma.protocol.camera_token import NUC_HASH_BYTES
from birthmark_sma.protocol.key_table import MAX_WIRE_INTEGER
from birthmark_sma.server_urls import check_url

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

_VISIBLE = re.compile(r"[!-~]+")
_FINGERPRINT = re.compile(r"(?:[0-9a-fA-F]{2}:?){31}[0-9a-fA-F]{2}")

_chance = secrets.SystemRandom().random


@dataclass(frozen=True, slots=True)
class Enrolment:
    """The app's arguments for the provisioning of a camera.

    `url` is the URL of the authority: https, or http on this machine only. `nuc_hash` is the
    sensor's own hash of 32 bytes, if known. `keys_per_table` is the size of the authority's tables,
    which no response contains: set it unless it is 1,000 or, for a prototype, 100 (see `keys_in`).
    `root_fingerprint` pins the authority: SHA-256 of the root certificate in 64 hex digits. Pin two
    roots around the change to a new root.
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
    root_fingerprint: str | tuple[str, ...] | None = None
    ssl_context: ssl.SSLContext | None = None
    patience: float = 60.0

    def __post_init__(self) -> None:
        try:
            check_device_serial(self.device_serial)
        except DeviceSerialRefusedError as error:
            raise ConfigurationError(str(error)) from None
        check_url(self.url, server="The authority", risk="read the camera's keys")
        if self.enrolment_key is not None and not _VISIBLE.fullmatch(self.enrolment_key):
            raise ConfigurationError(
                "An enrolment key must be visible ASCII, without spaces and not empty."
            )
        if self.nuc_hash is not None and len(self.nuc_hash) != NUC_HASH_BYTES:
            raise ConfigurationError(f"A NUC hash must have {NUC_HASH_BYTES} bytes.")
        if not all(_FINGERPRINT.fullmatch(each) for each in self._pinned):
            raise ConfigurationError(
                "The fingerprint of a root must be SHA-256 in hex, with or without colons."
            )
        if self.keys_per_table is not None and not 1 <= self.keys_per_table <= MAX_WIRE_INTEGER:
            raise ConfigurationError(f"keys_per_table must be between 1 and {MAX_WIRE_INTEGER}.")

    @property
    def root_fingerprints(self) -> tuple[str, ...]:
        """Return the fingerprints of the pinned roots, in lower-case hex; empty if none is."""
        return tuple(each.lower().replace(":", "") for each in self._pinned)

    @property
    def _pinned(self) -> tuple[str, ...]:
        given = self.root_fingerprint
        return () if given is None else (given,) if isinstance(given, str) else given

    def details(self) -> dict[str, str]:
        """Return the fields of the request that the app chose."""
        given = {
            "device_serial": self.device_serial,
            "device_family": self.device_family,
            "app_version": self.app_version,
            "nuc_hash": None if self.nuc_hash is None else self.nuc_hash.hex(),
        }
        return {name: value for name, value in given.items() if value is not None}


def begin(enrolment: Enrolment) -> Pending:
    """Generate a camera's keys and its request. Nothing is sent or written."""
    signing, key_encryption = new_key(), new_key()
    return Pending(
        device_serial=enrolment.device_serial,
        request=_request(enrolment, signing, key_encryption),
        idempotency_key=secrets.token_urlsafe(24),
        enrolment_key=enrolment.enrolment_key,
        private_key=private_pem(signing),
        key_encryption_private_key=private_pem(key_encryption),
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
            f"This directory belongs to camera {pending.device_serial!r}. Use another"
            f" directory for {enrolment.device_serial!r}."
        )
    with open_client(
        client, enrolment.ssl_context, seconds=ANSWER_SECONDS, connect=CONNECT_SECONDS
    ) as http:
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
        attempt = 0
        while True:
            asked_to_wait: float | None = None
            try:
                answer = self._ask(pending)
                status, _, content = answer
                if status == httpx2.codes.OK:
                    identity = make_identity(
                        pending,
                        content,
                        authority_url=self._enrolment.url,
                        root_fingerprints=self._enrolment.root_fingerprints,
                        keys_per_table=self._enrolment.keys_per_table,
                    )
                    return identity, response_time(answer)
                if not may_change(status):
                    raise _refusal(status, content)
                why = f"it answered with status {status}"
                asked_to_wait = retry_after(answer)
            except (httpx2.LocalProtocolError, httpx2.UnsupportedProtocol) as error:
                # Nothing was sent, and no retry would change that.
                raise ConfigurationError(
                    f"The request cannot be sent to the authority: {error}."
                ) from None
            except httpx2.HTTPError as error:
                why = describe(error)
            except UnusableAnswerError as error:
                why = str(error)
            wait = draw_pause(
                attempt, first=_FIRST_WAIT_SECONDS, longest=_LONGEST_WAIT_SECONDS, chance=_chance
            )
            pause = max(wait, asked_to_wait or 0.0)
            if time.monotonic() + pause > self._deadline:
                raise AuthorityAwayError(
                    f"The authority gave no usable response ({why}). Nothing is lost: start"
                    " again later, at best within 24 hours.",
                    retry_after=asked_to_wait,
                )
            time.sleep(pause)
            attempt += 1

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
                load_private_key(pending.private_key),
                load_private_key(pending.key_encryption_private_key),
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
    return json.dumps(
        enrolment.details()
        | {
            "csr": make_csr(enrolment.device_serial, signing, key_encryption),
            _KEY_ENCRYPTION: public_pem(key_encryption),
        }
    )


def may_change(status: int) -> bool:
    """Return True if a retry may get another answer. A redirect comes from a captive portal."""
    return status in _TRY_AGAIN or 300 <= status < 400 or status >= 500


def _refusal(status: int, content: bytes) -> ProvisioningRefusedError:
    kind = "unknown"
    detail = "the response does not come from such an authority. Check the URL."
    with suppress(KeyError, TypeError, ValueError, RecursionError):
        problem = json.loads(content)
        kind, detail = str(problem["type"]).rpartition(":")[2], str(problem["detail"])
    advice = _ALREADY_PROVISIONED if kind == "device-already-provisioned" else ""
    return ProvisioningRefusedError(
        f"The authority refused the camera ({status}): {detail}{advice}", status=status, kind=kind
    )


_ALREADY_PROVISIONED = (
    " Either another camera has this serial, or this camera was reset, or it missed the response"
    " more than 24 hours ago. If the serial is this camera's own, ask the operator for: sma devices"
    " re-enrol SERIAL. Then start again. Otherwise choose a new serial in an empty directory."
)
