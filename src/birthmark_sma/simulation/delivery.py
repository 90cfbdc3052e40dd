"""A simulated camera's way to an aggregation server that somebody else runs, over HTTP."""

import json
from collections.abc import Set
from dataclasses import dataclass

import httpx2

from birthmark_sma.device import bounded_post
from birthmark_sma.protocol.bundle import Bundle
from birthmark_sma.simulation.cases import Ending

SECONDS = 30.0
_MAX_ANSWER_BYTES = 65_536
_SEEN_ALONE = frozenset(
    {Ending.MALFORMED, Ending.WRONG_TIME, Ending.WRONG_CERTIFICATE, Ending.WRONG_SIGNATURE}
)
_NOT_OF_THE_BUNDLE = frozenset({404, 405, 408, 421, 429})
_TURNED_AWAY = "it was turned away, and is good: to be taken (2xx)"


@dataclass(frozen=True, slots=True)
class Answer:
    """What an aggregation server said of a bundle.

    `status` is HTTP's, or None where nobody answered; then `detail` says why. `ending` is there
    where the answer is JSON with a field of that name, as `sma simulate aggregator` gives it.
    """

    status: int | None
    ending: Ending | None = None
    detail: str = ""


def fault_in(answer: Answer, right: Set[Ending]) -> str | None:
    """Return what is wrong with an answer to a bundle of which these endings are right, or None.

    Some statuses say nothing of a bundle, whatever is written below them. Else the ending has to be
    right, and PASS comes with 2xx. Where none is named, the status has to do: what is good is taken
    (2xx); what an aggregation server can see for itself to be bad is turned away (4xx); and what
    the authority alone knows may be either, as it may be asked later.
    """
    if answer.status is None:
        return answer.detail
    taken = 200 <= answer.status < 300
    if not taken and (not 400 <= answer.status < 500 or answer.status in _NOT_OF_THE_BUNDLE):
        return "that says nothing of the bundle: it is neither taken (2xx) nor turned away (4xx)"
    if answer.ending is not None:
        if answer.ending not in right:
            return f"it should be {' or '.join(sorted(right))}"
        return _TURNED_AWAY if answer.ending is Ending.PASS and not taken else None
    if taken and right <= _SEEN_ALONE:
        return f"it was taken, and is to be turned away (4xx): {' or '.join(sorted(right))}"
    return _TURNED_AWAY if Ending.PASS in right and not taken else None


def deliver(client: httpx2.Client, url: str, bundle: Bundle) -> Answer:
    """Send a bundle, once."""
    try:
        answer = bounded_post(
            client,
            url,
            bundle.to_json(),
            {"Content-Type": "application/json"},
            seconds=SECONDS,
            max_bytes=_MAX_ANSWER_BYTES,
        )
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        return Answer(None, detail=str(error) or type(error).__name__)
    return Answer(answer.status, _ending_in(answer.content))


def _ending_in(content: bytes) -> Ending | None:
    try:
        return Ending(json.loads(content)["ending"])
    except (KeyError, TypeError, ValueError, RecursionError):
        return None
