"""Renew a camera's certificate when it is time, and keep trying until it is done.

`Renewer.step` does what is due and returns the pause until the next step. `background` calls it in
a thread, or the app calls it through `Camera.renew_if_due`. A renewal must never stop the camera
from capturing, and must never be repeated fast.
"""

import logging
import secrets
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime

from cryptography.hazmat.primitives import hashes, serialization

from birthmark_sma.device import state
from birthmark_sma.device.certification import UnusableAnswerError
from birthmark_sma.device.clock import CameraClock
from birthmark_sma.device.renewal import messages
from birthmark_sma.device.renewal.exchange import AuthorityAddress, Kind, Result
from birthmark_sma.device.renewal.schedule import (
    ASK_SECONDS,
    LONGEST_SECONDS,
    SHORTEST_SECONDS,
    Plan,
    default_window,
    later,
    parse_plan,
    renewal_time,
    share_of,
)
from birthmark_sma.device.state import Identity, PendingRenewal, Predecessor
from birthmark_sma.device.state_directory import DirectoryLock, PrivateDirectory
from birthmark_sma.device.state_encryption import Sealing
from birthmark_sma.elapsed import seconds_since_boot
from birthmark_sma.errors import DamagedDeviceStateError, DeviceStorageError
from birthmark_sma.http_requests import draw_pause

FILE = "renewal.json"
_HOUR = 3_600.0
_PAUSES = {
    Kind.AWAY: (SHORTEST_SECONDS, _HOUR),
    Kind.UNUSABLE: (SHORTEST_SECONDS, _HOUR),
    Kind.TIME: (SHORTEST_SECONDS, 6 * _HOUR),
    Kind.NOT_ACTIVE: (LONGEST_SECONDS, LONGEST_SECONDS),
    Kind.OTHER_REQUEST: (_HOUR, LONGEST_SECONDS),
    Kind.REFUSED: (_HOUR, LONGEST_SECONDS),
    Kind.UNKNOWN: (_HOUR, LONGEST_SECONDS),
}
"""The first and the longest pause in seconds after a response without a certificate."""
_SENTENCES = {
    Kind.AWAY: (logging.INFO, "The authority gave no usable response to a renewal (%s)."),
    Kind.UNUSABLE: (
        logging.WARNING,
        "The certificate is not renewed, because the authority's response cannot be used: %s. The"
        " camera tries again. After the change to a new root, update the app so that it pins both.",
    ),
    Kind.TIME: (
        logging.WARNING,
        "The certificate is not renewed, because the camera's clock is wrong. Set the clock. The"
        " authority answered: %s",
    ),
    Kind.NOT_ACTIVE: (
        logging.WARNING,
        "The certificate is not renewed, because the device is not active. Ask the operator of the"
        " authority. It answered: %s",
    ),
    Kind.OTHER_REQUEST: (
        logging.WARNING,
        "The authority refused the renewal. The camera makes a new request later. It answered: %s",
    ),
    Kind.REFUSED: (
        logging.ERROR,
        "The authority refuses to renew the certificate. If that does not change, ask its operator"
        " to re-enrol the device, and provision the camera in an empty directory. It answered: %s",
    ),
    Kind.UNKNOWN: (logging.WARNING, "The authority did not renew the certificate: %s"),
}
_TELL_AGAIN_SECONDS = 86_400.0

_log = logging.getLogger(__name__)
_chance = secrets.SystemRandom().random


@dataclass(frozen=True, slots=True)
class Renewal:
    """The app's choices for the renewal of the certificate.

    `automatic` renews in a background thread. Otherwise call `Camera.renew_if_due` now and then.
    `supersede` asks the authority to revoke the camera's other certificates as superseded, as soon
    as captures use the new one.
    `new_key` makes a new signing key for each renewal. `wait` waits for a number of seconds in
    place of the thread, for tests with a simulated clock.
    """

    automatic: bool = True
    supersede: bool = False
    new_key: bool = True
    wait: Callable[[float], object] | None = None


class Renewer:
    """The renewals of one camera. The directory must be locked. Threads may share it."""

    def __init__(
        self,
        identity: Identity,
        place: PrivateDirectory,
        held: DirectoryLock,
        sealing: Sealing,
        *,
        clock: CameraClock,
        address: AuthorityAddress,
        install: Callable[[Identity], None],
        options: Renewal,
    ) -> None:
        """Continue with the plan and the request on disk. Nothing is sent.

        `install` is called with the renewed identity once it is on disk.

        Raises DeviceStorageError.
        """
        self._identity = identity
        self._place = place
        self._held = held
        self._sealing = sealing
        self._clock = clock
        self._address = address
        self._install = install
        self._options = options
        self._certificate = messages.certificate_of(identity)
        self._plan = _load(place, self._fingerprint) or Plan(self._fingerprint, clock.now())
        self._stepping = threading.Lock()
        self._tell_at: dict[Kind, float] = {}

    def step(self) -> float:
        """Do what is due, and return the seconds until the next step.

        At most three requests are sent: for the window, for a certificate, and to supersede the old
        one. Each takes up to 80 seconds.

        Raises DeviceStorageError if the disk fails or the camera is closed, DeviceSecretError if
        the state cannot be sealed, and DeviceBusyError in a forked process. The renewal goes on at
        the next step.
        """
        with self._held.in_use():
            pass  # before `_stepping`, which may be locked forever in a forked process
        with self._stepping:
            now = self._clock.now()
            if self._plan.seconds_left(now) == 0:
                self._plan = replace(self._plan, attempts=self._plan.attempts + 1)
                # First in memory: a step that raises an error must not be repeated at once.
                self._plan = self._put_off(Kind.AWAY, None)
                self._plan = self._advance()
                self._store_plan()
            return self._plan.seconds_left(self._clock.now())

    @property
    def _fingerprint(self) -> str:
        return self._certificate.fingerprint(hashes.SHA256()).hex()

    def _advance(self) -> Plan:
        """Supersede, ask for the window, or renew. Return the plan for the next step."""
        if self._identity.predecessor is not None:
            return self._supersede(self._identity.predecessor)
        pending = self._identity.renewal
        if pending is None:
            plan, due = self._ask()
            if not due:
                return plan
            pending = messages.begin(self._identity, new_signing_key=self._options.new_key)
            # The keys must be on disk before the CSR is sent.
            self._save(replace(self._identity, renewal=pending))
            self._plan = replace(self._plan, attempts=1, window=plan.window)
        return self._renew(pending)

    def _ask(self) -> tuple[Plan, bool]:
        """Return the plan with the current window, and True if it is time to renew."""
        begins, ends = self._validity
        path = messages.window_path(self._certificate)
        result = (
            Result(Kind.UNKNOWN, "the certificate does not name its issuer's key")
            if path is None
            else self._address.ask_for_window(path)
        )
        attempts, window = 0, result.window
        pause = ASK_SECONDS if result.retry_after is None else result.retry_after
        if window is None:
            _log.info("The renewal window is not known (%s)", result.said)
            attempts, window = self._plan.attempts, self._plan.window
            pause = max(self._pause(result.kind), result.retry_after or 0.0)
        due = renewal_time(
            window or default_window(begins, ends),
            share_of(
                bytes.fromhex(self._identity.nonce_secret),
                self._certificate.public_bytes(serialization.Encoding.DER),
            ),
            begins=begins,
            ends=ends,
        )
        now = self._clock.now()
        plan = Plan(self._fingerprint, min(due, later(now, pause)), attempts, window)
        return plan, due <= now

    def _renew(self, pending: PendingRenewal) -> Plan:
        """Send the request, and return the plan that follows from the response."""
        identity = self._identity
        body = messages.make_request(
            identity.device_certificate,
            identity.private_key,
            pending,
            supersede=False,
            now=self._clock.now(),
        )
        result = self._address.renew(body)
        if result.kind is Kind.DONE:
            try:
                renewed = messages.read_response(identity, pending, result.content)
            except UnusableAnswerError as error:
                result = Result(Kind.UNUSABLE, str(error))
            else:
                if self._options.supersede:
                    old = Predecessor(identity.device_certificate, pending, identity.private_key)
                    renewed = replace(renewed, predecessor=old)
                return self._replace(renewed)
        self._tell(result)
        if result.kind is Kind.OTHER_REQUEST:
            # Only after a definite refusal: before, the authority may have accepted the CSR.
            self._save(replace(identity, renewal=None))
        return self._put_off(result.kind, result.retry_after)

    def _replace(self, renewed: Identity) -> Plan:
        """Put the renewed identity in place of the old one, first on disk, then for captures."""
        self._save(renewed)
        self._certificate = messages.certificate_of(renewed)
        self._install(renewed)
        self._tell_at.clear()
        _log.info("The certificate is renewed. It ends at %s", self._validity[1].isoformat())
        if renewed.predecessor is not None:
            self._plan = Plan(self._fingerprint, self._clock.now(), attempts=1)
            return self._supersede(renewed.predecessor)
        return self._plan_after_success()

    def _supersede(self, old: Predecessor) -> Plan:
        """Repeat the request of the last renewal, with the wish to supersede, and return the plan.

        The authority revokes the old certificate only now, when captures use the new one: an old
        certificate that is revoked while it is in use would cost pictures. The response has the
        newest table keys, and the authority has noted that the camera got them.
        """
        identity = self._identity
        body = messages.make_request(
            old.device_certificate,
            old.private_key,
            old.renewal,
            supersede=True,
            now=self._clock.now(),
        )
        result = self._address.renew(body)
        if result.kind is Kind.DONE:
            try:
                identity = messages.read_confirmation(identity, old.renewal, result.content)
            except UnusableAnswerError as error:
                result = Result(Kind.AWAY, str(error))
        if result.kind is Kind.DONE or result.is_final:
            self._save(replace(identity, predecessor=None))
            self._install(self._identity)
            _log.info("The renewed certificate is superseded (%s)", result.said)
            return self._plan_after_success()
        self._tell(result)
        return self._put_off(result.kind, result.retry_after)

    def _plan_after_success(self) -> Plan:
        # A window that is always in the past must not lead to one renewal after another.
        pause = ASK_SECONDS * (0.5 + 0.5 * _chance())
        return Plan(self._fingerprint, later(self._clock.now(), pause))

    @property
    def _validity(self) -> tuple[datetime, datetime]:
        return self._certificate.not_valid_before_utc, self._certificate.not_valid_after_utc

    def _put_off(self, kind: Kind, retry_after: float | None) -> Plan:
        """Return the plan after a step without success."""
        pause = max(self._pause(kind), retry_after or 0.0)
        return replace(self._plan, step_at=later(self._clock.now(), pause))

    def _pause(self, kind: Kind) -> float:
        first, longest = _PAUSES[kind]
        return draw_pause(self._plan.attempts - 1, first=first, longest=longest, chance=_chance)

    def _tell(self, result: Result) -> None:
        """Log a response, each kind once a day."""
        if seconds_since_boot() < self._tell_at.get(result.kind, 0.0):
            return
        self._tell_at[result.kind] = seconds_since_boot() + _TELL_AGAIN_SECONDS
        level, sentence = _SENTENCES[result.kind]
        _log.log(level, sentence, result.said)

    def _save(self, identity: Identity) -> None:
        with self._held.in_use():
            state.save(identity, self._place, self._sealing)
        self._identity = identity

    def _store_plan(self) -> None:
        try:
            with self._held.in_use():
                self._place.write(FILE, self._plan.to_json())
        except DeviceStorageError as error:  # the plan still applies in this process
            _log.info("The plan of the renewal could not be stored: %s", error)


def _load(place: PrivateDirectory, fingerprint: str) -> Plan | None:
    """Return the stored plan, or None if there is none for this certificate."""
    try:
        content = place.read(FILE)
    except DamagedDeviceStateError:
        return None
    plan = None if content is None else parse_plan(content)
    return plan if plan is not None and plan.certificate == fingerprint else None
