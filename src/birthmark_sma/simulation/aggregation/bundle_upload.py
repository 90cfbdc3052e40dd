"""A simulated camera's way to an aggregation server that somebody else runs, over HTTP."""

import json
from collections.abc import Set
from dataclasses import dataclass

import httpx2

from birthmark_sma.device import Delivery
from birthmark_sma.device.intake import interpret_response, post_bundle
from birthmark_sma.protocol.bundle import Bundle
from birthmark_sma.simulation.expected_outcomes import Outcome

SECONDS = 30.0
_SEEN_ALONE = frozenset(
    {Outcome.MALFORMED, Outcome.WRONG_TIME, Outcome.WRONG_CERTIFICATE, Outcome.WRONG_SIGNATURE}
)
_TAKEN = "200, 201, 202, or 409 where it came before, with its bundle_id"
_REFUSED = "400, 413, 415, 422"
_TURNED_AWAY = f"it was turned away, and is good: to be taken ({_TAKEN})"


@dataclass(frozen=True, slots=True)
class Answer:
    """What an aggregation server said of a bundle.

    `status` is HTTP's, or None where nobody answered; then `detail` says why. `delivery` is what a
    camera makes of it. `ending` is there where the answer is JSON with a field of that name, as
    `sma simulate aggregator` gives it.
    """

    status: int | None
    delivery: Delivery = Delivery.LATER
    ending: Outcome | None = None
    detail: str = ""


def fault_in(answer: Answer, right: Set[Outcome]) -> str | None:
    """Return what is wrong with an answer to a bundle of which these endings are right, or None.

    What tells a camera to try again later says nothing of a bundle, whatever is written below it.
    Else the ending has to be right, and PASS comes with a bundle that is taken. Where none is
    named, the delivery has to do: what is good is taken; what an aggregation server can see for
    itself to be bad is refused; and what the authority alone knows may be either, as it may be
    asked later.
    """
    if answer.status is None:
        return answer.detail
    taken = answer.delivery is Delivery.TAKEN
    if not taken and answer.delivery is not Delivery.REFUSED:
        return (
            f"that says nothing of the bundle: it is neither taken ({_TAKEN}) nor refused"
            f" ({_REFUSED})"
        )
    if answer.ending is not None:
        if answer.ending not in right:
            return f"it should be {' or '.join(sorted(right))}"
        return _TURNED_AWAY if answer.ending is Outcome.PASS and not taken else None
    if taken and right <= _SEEN_ALONE:
        return f"it was taken, and is to be refused ({_REFUSED}): {' or '.join(sorted(right))}"
    return _TURNED_AWAY if Outcome.PASS in right and not taken else None


def deliver(client: httpx2.Client, url: str, bundle: Bundle) -> Answer:
    """Send a bundle, once."""
    try:
        answer = post_bundle(client, url, bundle, seconds=SECONDS)
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        return Answer(None, detail=str(error) or type(error).__name__)
    found = interpret_response(answer, bundle.bundle_id)
    delivery = found if isinstance(found, Delivery) else Delivery.LATER
    return Answer(answer.status, delivery, _ending_in(answer.content))


def _ending_in(content: bytes) -> Outcome | None:
    try:
        return Outcome(json.loads(content)["ending"])
    except (KeyError, TypeError, ValueError, RecursionError):
        return None
