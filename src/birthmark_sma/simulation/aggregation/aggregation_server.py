"""A simulated aggregation server: it verifies bundles and has their camera tokens validated.

`player` and `hosting` call it. It uses `birthmark_sma.client` and keeps the bundle ids that
it has seen and the devices that were reported stolen.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from cryptography import x509

from birthmark_sma.client import (
    AsyncAuthorityClient,
    Cause,
    Fail,
    Indeterminate,
    Pass,
    VerifiedBundle,
    verify_bundle,
)
from birthmark_sma.errors import (
    BundleCertificateError,
    BundleError,
    BundleSignatureError,
    BundleTimeError,
    MalformedBundleError,
)
from birthmark_sma.simulation.expected_outcomes import Outcome

_PAUSE = 0.5  # least seconds between two attempts to get a verdict

# The first row whose class matches the error determines the outcome.
_REJECTIONS: tuple[tuple[type[BundleError], Outcome], ...] = (
    (MalformedBundleError, Outcome.MALFORMED),
    (BundleTimeError, Outcome.WRONG_TIME),
    (BundleCertificateError, Outcome.WRONG_CERTIFICATE),
    (BundleSignatureError, Outcome.WRONG_SIGNATURE),
)


Unanswered = Callable[[Cause], None]


def _nobody(_cause: Cause) -> None:
    """Ignore the cause."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """The outcome of a bundle, with a sentence in `detail` that may be empty.

    `asked` is the number of calls to the authority. `device_serial` and `bundle_id` are None if the
    bundle could not be verified.
    """

    ending: Outcome
    detail: str = ""
    asked: int = 0
    device_serial: str | None = None
    bundle_id: bytes | None = None


class Aggregator:
    """A simulated aggregation server that judges each bundle once.

    The event loop of its client owns all fields.
    """

    def __init__(self, client: AsyncAuthorityClient, root: x509.Certificate) -> None:
        self.client = client
        self.reported: set[str] = set()
        """Serials of stolen devices. This server rejects their bundles without a validation."""
        self._root = root
        self._seen: set[bytes] = set()

    async def take(
        self, text: bytes, *, until: float, unanswered: Unanswered = _nobody
    ) -> Judgement:
        """Verify a bundle in its received form, and have its camera token validated.

        `until` is the event loop's time at which it gives up. `unanswered` is called with the cause
        each time that the authority gives no verdict.
        """
        try:
            verified = verify_bundle(text, root=self._root, now=datetime.now(UTC))
        except BundleError as error:
            return Judgement(_rejection(error), str(error))
        # The checks against the own lists come before the call to the authority.
        identity = verified.bundle_id
        if verified.device_serial in self.reported:
            judgement = Judgement(Outcome.REPORTED)
        elif identity in self._seen:
            judgement = Judgement(Outcome.DUPLICATE)
        else:
            # Before the await: a second copy may arrive while the authority is called.
            self._seen.add(identity)
            judgement = await self._ask(verified, until, unanswered)
            if judgement.ending is Outcome.UNDECIDED:
                self._seen.discard(identity)  # the camera may send it again
        return replace(judgement, device_serial=verified.device_serial, bundle_id=identity)

    async def _ask(self, bundle: VerifiedBundle, until: float, unanswered: Unanswered) -> Judgement:
        """Call the authority until it gives a verdict or `until` has passed.

        An outage is not a verdict, so it retries, with at least `_PAUSE` seconds between two calls.
        """
        loop = asyncio.get_running_loop()
        last = Indeterminate(Cause.TIMED_OUT, "There was no time left for a validation.")
        asked = 0
        while (left := until - loop.time()) > 0:
            asked += 1
            match await self.client.validate_bundle(bundle, deadline=min(left, 10.0)):
                case Pass():
                    return Judgement(Outcome.PASS, asked=asked)
                case Fail(error=error):
                    return Judgement(Outcome.FAIL, error or "", asked)
                case Indeterminate(cause=Cause.ALREADY_SUBMITTED, detail=detail):
                    return Judgement(Outcome.ALREADY_SUBMITTED, detail, asked)
                case Indeterminate() as last:
                    unanswered(last.cause)
                    if not last.cause.passes:
                        break
                    pause = max(last.retry_after or 0.0, _PAUSE)
                    await asyncio.sleep(max(0.0, min(pause, until - loop.time())))
        return Judgement(Outcome.UNDECIDED, f"{last.cause}: {last.detail}", asked)


def _rejection(error: BundleError) -> Outcome:
    """Return the outcome of a verification error. Raises the error if it has none."""
    for kind, ending in _REJECTIONS:
        if isinstance(error, kind):
            return ending
    raise error
