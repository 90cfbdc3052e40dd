"""How often the very same request has come, for scripts that answer it otherwise in the end."""

import time
from collections import OrderedDict
from collections.abc import Callable
from hashlib import sha256

from starlette.types import Scope

from birthmark_sma.authority.background.sandbox_expiry import LIFETIME
from birthmark_sma.web.sandbox.scenario_catalog import Asked

_REMEMBERED = 10_000


class Repetitions:
    """Counts requests. What has come to its end is forgotten, so that the next run of somebody's
    tests meets the same again; so is what did not, once it is as old as all that a sandbox keeps.

    Belongs to an event loop; `clock` gives seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seen: OrderedDict[bytes, tuple[float, int]] = OrderedDict()  # the latest is last

    def seen(self, request: bytes) -> int:
        """Count a request, by its digest, and say the how manieth it is."""
        now = self._clock()
        self._forget_before(now - LIFETIME.total_seconds())
        _, times = self._seen.pop(request, (now, 0))
        self._seen[request] = (now, times + 1)
        if len(self._seen) > _REMEMBERED:
            self._seen.popitem(last=False)
        return times + 1

    def forget(self, request: bytes) -> None:
        """Begin anew with a request that has come to its end."""
        self._seen.pop(request, None)

    def _forget_before(self, moment: float) -> None:
        while self._seen and next(iter(self._seen.values()))[0] < moment:
            self._seen.popitem(last=False)


def request_digest(scope: Scope, body: bytes, asked: Asked) -> bytes:
    """Return what only the very same request has, asking for the very same."""
    told = f"{scope['method']} {scope['path']} {asked.scenario.name} {asked.number} ".encode()
    return sha256(told + scope["query_string"] + b" " + body).digest()
