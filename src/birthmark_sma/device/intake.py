"""Send a bundle to an aggregation server, and interpret its response.

| response | the bundle |
| --- | --- |
| 200, 201, 202, 409 with `{"bundle_id": "<the bundle's id>"}` | is removed: the server has it |
| 400, 413, 415, 422 | is set aside: the server will never accept it |
| any other response, or none | is tried again later, after `Retry-After` if there is one |

A success must name the bundle's id. A 200 from the login page of a Wi-Fi network, or from a server
at a wrong URL, does not, and must never remove a bundle. `bundle_queue` calls the `Intake`.
"""

import json
import logging
from typing import Self

import httpx2

from birthmark_sma.device.bounded_http import (
    Answer,
    HearTime,
    bounded_post,
    describe,
    response_time,
    retry_after,
)
from birthmark_sma.device.bundle_queue import Delivery, Later
from birthmark_sma.protocol.bundle import Bundle
from birthmark_sma.server_urls import check_url

ANSWER_SECONDS = 30.0
MAX_ANSWER_BYTES = 65_536
_TAKEN = frozenset({200, 201, 202})
_TAKEN_BEFORE = 409  # Conflict: the server already has the bundle
_REFUSED = frozenset({400, 413, 415, 422})

_log = logging.getLogger(__name__)


class Intake:
    """Sends bundles to one aggregation server. Pass it to `BundleQueue.drain`, or call it.

    `Camera.intake` creates one that also compares the camera's clock with the server's.
    """

    def __init__(
        self,
        url: str,
        *,
        client: httpx2.Client | None = None,
        hear_time: HearTime | None = None,
        answer_seconds: float = ANSWER_SECONDS,
    ) -> None:
        """Configure the server. Nothing is sent.

        `client` replaces the default HTTP client, for example to add headers or trusted CAs.
        `hear_time` is called with the time of each response and the server's host. A response takes
        at most `answer_seconds` and 64 KiB.

        Raises ConfigurationError if the URL is neither https nor on this machine.
        """
        check_url(url, server="The aggregation server", risk="answer that it has a bundle")
        self._url = httpx2.URL(url)
        self._http = client or httpx2.Client(timeout=answer_seconds)
        self._hear_time = hear_time
        self._seconds = answer_seconds

    def __call__(self, bundle: Bundle) -> Delivery | Later:
        """Send one bundle once, and return the result."""
        try:
            answer = post_bundle(self._http, self._url, bundle, seconds=self._seconds)
        except httpx2.HTTPError as error:
            _log.info("No response from %s (%s)", self._url.host, describe(error))
            return Delivery.LATER
        time = response_time(answer)
        if time is not None and self._hear_time is not None:
            self._hear_time(time, self._url.host)
        delivery = interpret_response(answer, bundle.bundle_id)
        if delivery is not Delivery.TAKEN:
            level = logging.WARNING if delivery is Delivery.REFUSED else logging.INFO
            _log.log(
                level,
                "%s answered a bundle with status %s: %s",
                self._url.host,
                answer.status,
                delivery,
            )
        return delivery

    def close(self) -> None:
        """Close the HTTP client."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def post_bundle(
    client: httpx2.Client, url: httpx2.URL | str, bundle: Bundle, *, seconds: float
) -> Answer:
    """POST a bundle. Raises the same errors as `bounded_post`."""
    return bounded_post(
        client,
        url,
        bundle.to_json(),
        {"Content-Type": "application/json"},
        seconds=seconds,
        max_bytes=MAX_ANSWER_BYTES,
    )


def interpret_response(answer: Answer, bundle_id: str) -> Delivery | Later:
    """Return the meaning of a response for the bundle with this id."""
    if answer.status in _TAKEN or answer.status == _TAKEN_BEFORE:
        return Delivery.TAKEN if _named_in(answer.content) == bundle_id else Delivery.LATER
    if answer.status in _REFUSED:
        return Delivery.REFUSED
    wait = retry_after(answer)
    return Delivery.LATER if wait is None else Later(wait)


def _named_in(content: bytes) -> str | None:
    """Return the `bundle_id` in a response, in lower case, or None."""
    try:
        named = json.loads(content)["bundle_id"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return None
    return named.lower() if isinstance(named, str) else None
