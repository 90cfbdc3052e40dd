"""A simulated aggregation server: `birthmark_sma.client`, and what such a server keeps."""

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

_PAUSE = 0.5

# The first row whose class an error belongs to gives the ending.
_REJECTIONS: tuple[tuple[type[BundleError], Outcome], ...] = (
    (MalformedBundleError, Outcome.MALFORMED),
    (BundleTimeError, Outcome.WRONG_TIME),
    (BundleCertificateError, Outcome.WRONG_CERTIFICATE),
    (BundleSignatureError, Outcome.WRONG_SIGNATURE),
)


Unanswered = Callable[[Cause], None]


def _nobody(_cause: Cause) -> None:
    """Hear nothing."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """What the server came to, and a sentence about it where there is something to say.

    `asked` is how often the authority was asked; `device_serial` and `bundle_id` are those of a
    bundle that was good.
    """

    ending: Outcome
    detail: str = ""
    asked: int = 0
    device_serial: str | None = None
    bundle_id: bytes | None = None


class Aggregator:
    """Judges bundles, each once. Belongs to the event loop of its client."""

    def __init__(self, client: AsyncAuthorityClient, root: x509.Certificate) -> None:
        self.client = client
        self.reported: set[str] = set()
        """Devices that this server takes nothing of any more, whatever the authority says."""
        self._root = root
        self._seen: set[bytes] = set()

    async def take(
        self, text: bytes, *, until: float, unanswered: Unanswered = _nobody
    ) -> Judgement:
        """Judge a bundle as it came. `until` is the time of the event loop to give up at.

        `unanswered` hears why, each time that the authority was asked and gave no verdict.
        """
        try:
            verified = verify_bundle(text, root=self._root, now=datetime.now(UTC))
        except BundleError as error:
            return Judgement(_rejection(error), str(error))
        identity = verified.bundle_id
        if verified.device_serial in self.reported:
            judgement = Judgement(Outcome.REPORTED)
        elif identity in self._seen:
            judgement = Judgement(Outcome.DUPLICATE)
        else:
            self._seen.add(identity)
            judgement = await self._ask(verified, until, unanswered)
            if judgement.ending is Outcome.UNDECIDED:
                self._seen.discard(identity)  # it may be sent again
        return replace(judgement, device_serial=verified.device_serial, bundle_id=identity)

    async def _ask(self, bundle: VerifiedBundle, until: float, unanswered: Unanswered) -> Judgement:
        """Ask the authority until there is a verdict: an outage is none."""
        loop = asyncio.get_running_loop()
        last = Indeterminate(Cause.TIMED_OUT, "There was no time left to ask.")
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
    for kind, ending in _REJECTIONS:
        if isinstance(error, kind):
            return ending
    raise error
