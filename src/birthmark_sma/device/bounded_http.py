"""Send something and read the answer, in bounded time and memory, whatever answers there."""

from collections.abc import Callable
from datetime import datetime
from email.utils import parsedate_to_datetime
from ipaddress import ip_address
from typing import NamedTuple

import httpx2

from birthmark_sma.device.time_limit import TimeLimit

HearTime = Callable[[datetime, str], None]
"""Is told the time that an answer says, and the name of the server that gave it."""


class Answer(NamedTuple):
    """What came back, whole."""

    status: int
    headers: httpx2.Headers
    content: bytes


def bounded_post(
    client: httpx2.Client,
    url: httpx2.URL | str,
    content: bytes,
    headers: dict[str, str],
    *,
    seconds: float,
    max_bytes: int,
) -> Answer:
    """POST, follow no redirect, and return an answer of at most `max_bytes`.

    It ends after `seconds`, however slowly bytes come, as a timeout of httpx2's does not: that
    bounds the wait for the next byte. For this, each call makes a connection of its own. How long
    connecting may take is the client's to say; on a connection that it has kept open from another
    request, its timeouts are all there is.

    Raises httpx2.HTTPError: ReadTimeout where it takes longer, RemoteProtocolError where the answer
    is larger, or compressed though it was asked not to be (64 KiB can become gigabytes), and
    whatever else goes wrong on the way. httpx2.InvalidURL is not one of them.
    """
    received = b""
    try:
        with (
            TimeLimit(seconds) as limit,
            client.stream(
                "POST",
                url,
                content=content,
                headers=headers | {"Accept-Encoding": "identity", "Connection": "close"},
                follow_redirects=False,
                extensions={"trace": limit.note},
            ) as response,
        ):
            if "Content-Encoding" in response.headers:
                raise httpx2.RemoteProtocolError("what answers there sends it compressed")
            for part in response.iter_bytes():
                received += part
                if len(received) > max_bytes:
                    raise httpx2.RemoteProtocolError("what answers there sends too much")
    except httpx2.HTTPError:
        if not limit.over:
            raise
    if limit.over:  # whatever came of it
        raise httpx2.ReadTimeout("what answers there takes too long")
    return Answer(response.status_code, response.headers, received)


def response_time(answer: Answer) -> datetime | None:
    """Return the time that the server says it is (RFC 9110, section 6.6.1), if it says one."""
    return _http_date(answer.headers.get("Date", ""))


def retry_after(answer: Answer) -> float | None:
    """Return the seconds of Retry-After, if there is one.

    A date counts by the server's own clock: the camera's may be wrong.
    """
    text = answer.headers.get("Retry-After", "").strip()
    if text.isascii() and text.isdigit() and len(text) <= 9:
        return float(text)
    until, now = _http_date(text), response_time(answer)
    return None if until is None or now is None else max(0.0, (until - now).total_seconds())


def is_this_machine(host: str) -> bool:
    """Say whether what is sent to a host stays on this machine."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _http_date(text: str) -> datetime | None:
    try:
        time = parsedate_to_datetime(text)
    except (ValueError, TypeError, OverflowError, IndexError):
        return None
    return time if time.tzinfo is not None else None
