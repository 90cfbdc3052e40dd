"""A simulated camera's way to an aggregation server that somebody else runs, over HTTP."""

import json
from dataclasses import dataclass

import httpx2

from birthmark_sma.device import bundle_id
from birthmark_sma.protocol.bundle import Bundle
from birthmark_sma.simulation.cases import Ending

_SECONDS = 30.0
_MAX_ANSWER_BYTES = 65_536


@dataclass(frozen=True, slots=True)
class Answer:
    """What an aggregation server said of a bundle.

    `status` is HTTP's, or None where nobody answered; then `detail` says why. `ending` is there
    where the answer is JSON with a field of that name, as `sma simulate aggregator` gives it.
    """

    status: int | None
    ending: Ending | None = None
    detail: str = ""


def deliver(client: httpx2.Client, url: str, bundle: Bundle) -> Answer:
    """Send a bundle, once, with its id as Idempotency-Key."""
    headers = {"Content-Type": "application/json", "Idempotency-Key": bundle_id(bundle)}
    content = b""
    try:
        with client.stream(
            "POST", url, content=bundle.to_json(), headers=headers, timeout=_SECONDS
        ) as response:
            for part in response.iter_bytes():
                content += part
                if len(content) > _MAX_ANSWER_BYTES:
                    break
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        return Answer(None, detail=str(error) or type(error).__name__)
    return Answer(response.status_code, _ending_in(content))


def _ending_in(content: bytes) -> Ending | None:
    try:
        return Ending(json.loads(content)["ending"])
    except (KeyError, TypeError, ValueError, RecursionError):
        return None
