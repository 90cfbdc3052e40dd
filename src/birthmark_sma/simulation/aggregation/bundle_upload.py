"""Upload bundles to another developer's aggregation server over HTTP, and check its responses.

`sma simulate camera` uses it. It sends each bundle once and never retries.
"""

import json
from collections.abc import Set
from dataclasses import dataclass

import httpx2

from birthmark_sma.device import Delivery
from birthmark_sma.device.intake import interpret_response, post_bundle
from birthmark_sma.protocol.bundle import Bundle
from birthmark_sma.simulation.expected_outcomes import Outcome

SECONDS = 30.0
# An aggregation server finds these faults without the authority.
_SEEN_ALONE = frozenset(
    {Outcome.MALFORMED, Outcome.WRONG_TIME, Outcome.WRONG_CERTIFICATE, Outcome.WRONG_SIGNATURE}
)
_TAKEN = "200, 201, 202, or 409 if it was sent before, with its bundle_id"
_REFUSED = "400, 413, 415, 422"
_TURNED_AWAY = f"the bundle is good but was not taken. Take it ({_TAKEN})"


@dataclass(frozen=True, slots=True)
class Answer:
    """The response of an aggregation server to a bundle.

    `status` is the HTTP status, or None if there was no response; then `detail` contains the
    reason. `delivery` is a camera's interpretation of the response. `ending` is set if the response
    is JSON with a field of this name, as in the responses of `sma simulate aggregator`.
    """

    status: int | None
    delivery: Delivery = Delivery.LATER
    ending: Outcome | None = None
    detail: str = ""


def fault_in(answer: Answer, right: Set[Outcome]) -> str | None:
    """Return the fault in a response to a bundle, or None. `right` are the bundle's right outcomes.

    - A response that makes a camera try again later is a fault, whatever its body contains.
    - If the response names an ending, it must be one of `right`. PASS also needs a delivery TAKEN.
    - If it names none, the delivery decides. A bundle that passes must be taken. A bundle that an
      aggregation server can reject alone must be refused. A bundle that only the authority can
      judge may be taken or refused, because the server may validate it later.
    """
    if answer.status is None:
        return answer.detail
    taken = answer.delivery is Delivery.TAKEN
    if not taken and answer.delivery is not Delivery.REFUSED:
        return f"the response neither takes the bundle ({_TAKEN}) nor refuses it ({_REFUSED})"
    if answer.ending is not None:
        if answer.ending not in right:
            return f"it should be {' or '.join(sorted(right))}"
        return _TURNED_AWAY if answer.ending is Outcome.PASS and not taken else None
    if taken and right <= _SEEN_ALONE:
        return (
            f"the bundle was taken, but must be refused ({_REFUSED}): {' or '.join(sorted(right))}"
        )
    return _TURNED_AWAY if Outcome.PASS in right and not taken else None


def deliver(client: httpx2.Client, url: str, bundle: Bundle) -> Answer:
    """Send a bundle once. HTTP errors are returned as an `Answer` without a status."""
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
