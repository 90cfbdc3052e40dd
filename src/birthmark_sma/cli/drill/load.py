"""The pictures that are taken and validated while a drill runs, as an aggregation server does it.

`run` calls it. Each picture's right verdict is known, so the drill measures from outside until when
a wrong PASS came, and whether a genuine picture got a wrong FAIL.
"""

import secrets
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime

from cryptography import x509

from birthmark_sma.authority.ca.issuers import crl_path
from birthmark_sma.cli.drill.devices import DrillDevice
from birthmark_sma.client import (
    AuthorityClient,
    Indeterminate,
    IssuerCrls,
    Options,
    Pass,
    verify_bundle,
)
from birthmark_sma.errors import BundleError, DeviceSuspendedError, RevocationUnknownError
from birthmark_sma.protocol import camera_token, key_derivation
from birthmark_sma.protocol.bundle import Bundle
from birthmark_sma.protocol.camera_token import CameraToken

_AT_ONCE = 8  # pictures that are validated at the same time
_LIST_SECONDS = 1.0
"""The age at which the aggregation server fetches a revocation list again. Usually it is longer."""
_DEADLINE_SECONDS = 10.0
_FORGED = 0.3  # the share of forgeries, if there is a thief
_chance = secrets.SystemRandom().random


@dataclass(frozen=True, slots=True)
class Sample:
    """A picture: when it was taken and when its verdict came (Unix times), and what became of it.

    `seconds` is the time of the validation alone. `is_forged` means that the thief made the token.
    `issuer` is the DER of the intermediate in the bundle. `verified` is the result of the checks
    without the authority, and None if no list could be had. `passed` is None if the authority gave
    no verdict.
    """

    device: DrillDevice
    sent_at: float
    answered_at: float
    seconds: float
    is_forged: bool
    issuer: bytes = field(repr=False)
    verified: bool | None
    passed: bool | None


@dataclass(slots=True)
class Load:
    """Takes pictures with the devices at a rate a second, until it is stopped."""

    url: str
    root_name: str
    root: x509.Certificate
    devices: Sequence[DrillDevice]
    rate: float
    thief: "Thief | None" = None
    samples: list[Sample] = field(default_factory=list)
    _stopped: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin, in a thread."""
        self._thread = threading.Thread(target=self._run, name="drill load")
        self._thread.start()

    def stop(self) -> None:
        """End, after the pictures under way have their verdicts."""
        self._stopped.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        lists = IssuerCrls(
            self.url, root_lists={crl_path(self.root_name): self.root}, refresh=_LIST_SECONDS
        )
        options = Options(max_batch=1, max_in_flight=_AT_ONCE)
        with (
            AuthorityClient(self.url, options=options) as client,
            ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="picture") as threads,
        ):
            begun, number = time.monotonic(), 0
            while not self._stopped.wait(max(0.0, begun + number / self.rate - time.monotonic())):
                number += 1
                online = [e for e in self.devices if not e.is_offline or e.renewed_at is not None]
                if self.thief is not None and _chance() < _FORGED:
                    threads.submit(self._take, client, lists, self.thief.device, self.thief.forge)
                elif online:
                    threads.submit(self._take, client, lists, secrets.choice(online), None)

    def _take(
        self,
        client: AuthorityClient,
        lists: IssuerCrls,
        device: DrillDevice,
        forge: Callable[[], CameraToken] | None,
    ) -> None:
        """Take a picture, have it checked and validated, and note the result."""
        sent_at = time.time()
        bundle = device.played.camera.capture(b"a picture of a drill")
        token = bundle.content.camera_token if forge is None else forge()
        verified = self._is_verified(bundle, lists)
        before = time.monotonic()
        outcome = client.validate(token, deadline=_DEADLINE_SECONDS)
        self.samples.append(
            Sample(
                device,
                sent_at,
                time.time(),
                time.monotonic() - before,
                is_forged=forge is not None,
                issuer=bundle.content.device_certificate_chain[1],
                verified=verified,
                passed=None if isinstance(outcome, Indeterminate) else isinstance(outcome, Pass),
            )
        )

    def _is_verified(self, bundle: Bundle, lists: IssuerCrls) -> bool | None:
        try:
            verify_bundle(bundle, root=self.root, now=datetime.now(UTC), crl=lists)
        except (BundleError, DeviceSuspendedError):
            return False
        except RevocationUnknownError:
            return None
        return True


class Thief:
    """Forges camera tokens of another device with the keys of a stolen camera.

    The keys are those of the time of the theft: a rotation makes them worthless. With them the
    thief has opened a token of the victim, and so knows its NUC hash.
    """

    def __init__(self, stolen: DrillDevice, victims: Sequence[DrillDevice]) -> None:
        """Choose a victim that shares a key table with the stolen camera."""
        shared = [(e, e.tables & stolen.tables) for e in victims if e.tables & stolen.tables]
        self.has_victim = bool(shared)
        self.device, tables = shared[0] if shared else (stolen, stolen.tables)
        self._table_id = min(tables)
        master_key = stolen.played.identity.table_keys[str(self._table_id)]
        self._key = key_derivation.extract(bytes.fromhex(master_key))
        self._nuc_hash = bytes.fromhex(self.device.played.identity.nuc_hash)

    def forge(self) -> CameraToken:
        """Return a new token of the victim."""
        return camera_token.seal(
            self._nuc_hash,
            key=key_derivation.expand(self._key, 0),
            table_id=self._table_id,
            key_index=0,
            nonce=secrets.token_bytes(camera_token.NONCE_BYTES),
        )
