"""Count repeats of the same request, for scenarios that fail first and succeed later.

`fault_injection` uses it for the scenarios "recovers" and "lost".
"""

import time
from collections import OrderedDict
from collections.abc import Callable
from hashlib import sha256

from starlette.types import Scope

from birthmark_sma.authority.background.sandbox_expiry import LIFETIME
from birthmark_sma.web.sandbox.scenario_catalog import Asked

_REMEMBERED = 10_000  # requests; limits the memory


class Repetitions:
    """Counter of identical requests. The event loop owns it. `clock` returns seconds.

    It forgets a request when its scenario ends, so the next test run starts from the beginning. It
    forgets unfinished ones after `LIFETIME`, like all other data of a sandbox, and when there are
    more than `_REMEMBERED`.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        # Digest -> time of the latest request and number of requests, sorted by time.
        self._seen: OrderedDict[bytes, tuple[float, int]] = OrderedDict()

    def seen(self, request: bytes) -> int:
        """Count a request by its digest, and return how often it came, including this time."""
        now = self._clock()
        self._forget_before(now - LIFETIME.total_seconds())
        _, times = self._seen.pop(request, (now, 0))
        self._seen[request] = (now, times + 1)
        if len(self._seen) > _REMEMBERED:
            self._seen.popitem(last=False)
        return times + 1

    def forget(self, request: bytes) -> None:
        """Forget a request, so that its scenario starts from the beginning."""
        self._seen.pop(request, None)

    def _forget_before(self, moment: float) -> None:
        while self._seen and next(iter(self._seen.values()))[0] < moment:
            self._seen.popitem(last=False)


def request_digest(scope: Scope, body: bytes, asked: Asked) -> bytes:
    """Return a digest that only identical requests with the same scenario and number share."""
    told = f"{scope['method']} {scope['path']} {asked.scenario.name} {asked.number} ".encode()
    return sha256(told + scope["query_string"] + b" " + body).digest()
