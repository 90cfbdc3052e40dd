"""Ask the authority for a renewal window or a renewed certificate, once, and classify the response.

`renewer` calls it, decides what follows, and never sees HTTP.
"""

import json
import ssl
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum

import httpx2

from birthmark_sma.device.bounded_http import (
    Answer,
    HearTime,
    bounded_get,
    bounded_post,
    describe,
    open_client,
    response_time,
    retry_after,
)
from birthmark_sma.device.provisioning import (
    ANSWER_SECONDS,
    ATTEMPT_SECONDS,
    CONNECT_SECONDS,
    MAX_ANSWER_BYTES,
    may_change,
)
from birthmark_sma.device.renewal.messages import PATH
from birthmark_sma.device.renewal.schedule import Window, parse_window

MAX_WINDOW_BYTES = 16_384


class Kind(Enum):
    """The meaning of a response."""

    DONE = "done"
    AWAY = "away"
    """No usable response: try again later."""
    UNUSABLE = "unusable"
    """A response that the camera must not use, for example under a root that is not pinned."""
    TIME = "renewal-time-refused"
    """The camera's clock is more than 5 minutes off."""
    NOT_ACTIVE = "device-not-active"
    """The device is suspended, revoked or retired."""
    REFUSED = "renewal-refused"
    """The authority does not renew this certificate. A person has to act."""
    OTHER_REQUEST = "other request"
    """The authority will never accept this CSR."""
    UNKNOWN = "unknown"
    """Another refusal, for example from an authority without renewals."""


_FORBIDDEN = frozenset({Kind.TIME.value, Kind.NOT_ACTIVE.value, Kind.REFUSED.value})


@dataclass(frozen=True, slots=True)
class Result:
    """A classified response. `said` is a sentence, and `retry_after` the pause that it asks for."""

    kind: Kind
    said: str
    retry_after: float | None = None
    content: bytes = field(default=b"", repr=False)
    time: datetime | None = None
    window: Window | None = None

    @property
    def is_final(self) -> bool:
        """Return True if the authority will never carry out this request."""
        return self.kind in {Kind.REFUSED, Kind.OTHER_REQUEST}


@dataclass(frozen=True, slots=True)
class AuthorityAddress:
    """The way to the authority: its URL without a slash at the end, and the app's HTTP options."""

    url: str
    client: httpx2.Client | None
    ssl_context: ssl.SSLContext | None
    hear_time: HearTime

    def ask_for_window(self, path: str) -> Result:
        """Ask for a certificate's window. The result is DONE only with a window."""
        result = self._exchange(
            lambda http: bounded_get(
                http,
                self.url + path,
                seconds=ATTEMPT_SECONDS,
                max_bytes=MAX_WINDOW_BYTES,
            )
        )
        if result.kind is not Kind.DONE:
            return result
        window = parse_window(result.content)
        if window is None:
            return Result(Kind.AWAY, "its response is no renewal window", result.retry_after)
        return Result(Kind.DONE, result.said, result.retry_after, window=window)

    def renew(self, body: bytes) -> Result:
        """Send the request. The caller checks the content of a DONE result."""
        return self._exchange(
            lambda http: bounded_post(
                http,
                self.url + PATH,
                body,
                {"Content-Type": "application/json"},
                seconds=ATTEMPT_SECONDS,
                max_bytes=MAX_ANSWER_BYTES,
            )
        )

    def _exchange(self, ask: Callable[[httpx2.Client], Answer]) -> Result:
        try:
            with open_client(
                self.client, self.ssl_context, seconds=ANSWER_SECONDS, connect=CONNECT_SECONDS
            ) as http:
                answer = ask(http)
        except httpx2.HTTPError as error:
            return Result(Kind.AWAY, describe(error))
        time = response_time(answer)
        if time is not None:
            self.hear_time(time, "the authority")
        kind, said = _classify(answer)
        return Result(kind, said, retry_after(answer), answer.content, time)


def _classify(answer: Answer) -> tuple[Kind, str]:
    status = answer.status
    if status == httpx2.codes.OK:
        return Kind.DONE, "200"
    if may_change(status):
        return Kind.AWAY, f"status {status}"
    problem, detail = "", "the response does not come from such an authority. Check the URL."
    with suppress(KeyError, TypeError, ValueError, RecursionError):
        fields = json.loads(answer.content)
        problem, detail = str(fields["type"]).rpartition(":")[2], str(fields["detail"])
    if status == httpx2.codes.FORBIDDEN and problem in _FORBIDDEN:
        return Kind(problem), detail
    if problem and status in {httpx2.codes.CONFLICT, httpx2.codes.UNPROCESSABLE_CONTENT}:
        return Kind.OTHER_REQUEST, f"{status}: {detail}"
    return Kind.UNKNOWN, f"{status}: {detail}"
