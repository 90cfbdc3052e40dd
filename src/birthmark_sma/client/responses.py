"""Interpret the authority's responses. PURE. No other module may read a verdict.

Only a response with status 200, and with exactly one result per camera token, gives verdicts. Each
result is `Pass`, `Fail` or, if it does not follow the contract, `Indeterminate`. Every other
response is a `TransportError`. Nothing raises, whatever the authority sent. `async_client` calls
`read`.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from birthmark_sma.client.outcome import Cause, Fail, Indeterminate, Outcome, Pass
from birthmark_sma.http_requests import parse_retry_after
from birthmark_sma.protocol.strict_json import parse_json
from birthmark_sma.protocol.verdict import Reason, Verdict

_ERRORS_THAT_ARE_VERDICTS = frozenset(
    reason.told_to_caller for reason in Reason if reason.told_to_caller is not None
)
_VALIDATE_POLICY = re.compile(r'"validate[^"]{0,40}";q=([0-9]{1,9})')
# `datetime.fromisoformat` accepts more forms than RFC 3339, so this pattern checks the form.
_RFC3339_UTC = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]{1,9})?Z"
)
# Characters of an error text in a response that an outcome keeps at most.
_MAX_TEXT = 200


@dataclass(frozen=True, slots=True)
class HttpResponse:
    """A complete HTTP response. The names in `headers` are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class TransportError:
    """An attempt that returned no verdict.

    `again` is True if the same request may be sent once more. `retry_after` is the number of
    seconds that the authority asked to wait. `at_most` is the number of camera tokens that it
    accepts at once, if the request had more.
    """

    cause: Cause
    detail: str
    again: bool = False
    retry_after: float | None = None
    at_most: int | None = None

    @property
    def authority_ails(self) -> bool:
        """Return True if this counts as a failure of the authority in the circuit breaker."""
        return self.cause in _AILMENTS


_AILMENTS = frozenset(
    {Cause.UNREACHABLE, Cause.TIMED_OUT, Cause.UNTRUSTED, Cause.UNAVAILABLE, Cause.NOT_UNDERSTOOD}
)


def read(
    reply: HttpResponse,
    *,
    count: int,
    request_id: str,
    now: datetime,
    check_request_id: bool = True,
) -> Sequence[Outcome] | TransportError:
    """Return one outcome for each of `count` camera tokens, or the reason why there are none.

    `request_id` is the id that was sent. If `check_request_id` is True, a response with another id
    is refused. `now` is the time in UTC, to interpret a Retry-After that is a date.
    """
    answered_id = reply.headers.get("x-request-id")
    if check_request_id and answered_id is not None and answered_id != request_id:
        # Some proxies mix up their connections, and deliver the response to another request.
        return _not_understood(
            "The X-Request-ID of the response belongs to another request. If a proxy replaces"
            " the id, set check_request_id=False"
        )
    if reply.status != 200:
        return _without_verdict(reply, count, now)
    media_type = reply.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        return _not_understood("The response is not JSON")
    try:
        value = parse_json(reply.body)
    except ValueError:
        return _not_understood("The response is malformed JSON")
    results = value.get("results") if isinstance(value, dict) else None
    if not isinstance(results, list) or len(results) != count:
        return _not_understood(
            f"The response does not have one result for each of {count} camera tokens"
        )
    return [_outcome(each, request_id) for each in results]


# --- one result


def _outcome(result: object, request_id: str) -> Outcome:
    found = _verdict(result) if isinstance(result, dict) else None
    if found is not None:
        return found
    cause, detail = Cause.NOT_UNDERSTOOD, "The result in the response is not a verdict."
    if isinstance(result, dict) and isinstance(result.get("error"), str):
        if "validation_result" not in result:
            cause, detail = Cause.ALREADY_SUBMITTED, result["error"][:_MAX_TEXT]
        elif result["validation_result"] == Verdict.FAIL:
            # A single token would have got a 422 here. It means that the request is malformed, and
            # says nothing about who made the token.
            cause, detail = Cause.REFUSED, result["error"][:_MAX_TEXT]
    return Indeterminate(cause, detail, 1, request_id=request_id)


def _verdict(result: Mapping[str, Any]) -> Pass | Fail | None:
    """Return the verdict in a result, or None if the result does not follow the contract."""
    if "error" in result:
        return _verdict_with_error(result)
    verdict = result.get("validation_result")
    manufacturer_id = result.get("manufacturer_id")
    validated_at = _time(result.get("timestamp"))
    family, serial = result.get("device_family"), result.get("device_serial")
    if not (isinstance(manufacturer_id, str) and manufacturer_id and validated_at is not None):
        return None
    if not (isinstance(family, str | None) and isinstance(serial, str | None)):
        return None
    if verdict == Verdict.PASS:
        return Pass(manufacturer_id, validated_at, family, serial)
    # The authority never names a device with a FAIL, so such a result does not follow the contract.
    if verdict == Verdict.FAIL and family is None and serial is None:
        return Fail(manufacturer_id, validated_at)
    return None


def _verdict_with_error(result: Mapping[str, Any]) -> Fail | None:
    """Return Fail for an unknown table or key index, the only verdicts with an error; else None."""
    if set(result) != {"validation_result", "error"}:
        return None
    error = result["error"]
    known = isinstance(error, str) and error in _ERRORS_THAT_ARE_VERDICTS
    return Fail(error=error) if known and result["validation_result"] == Verdict.FAIL else None


def _time(value: object) -> datetime | None:
    """Parse an RFC 3339 time in UTC."""
    if not isinstance(value, str) or not _RFC3339_UTC.fullmatch(value):
        return None
    try:
        return datetime.fromisoformat(value)
    except ValueError:
        return None


# --- answers without a verdict


_STATUSES: Mapping[int, tuple[Cause, str]] = {
    401: (
        Cause.NOT_ALLOWED,
        "The access key is missing, wrong, expired or revoked (401). Get one from the operator.",
    ),
    403: (
        Cause.NOT_ALLOWED,
        "The access key does not permit validation (403). Get one with the scope validate.",
    ),
    407: (
        Cause.PROXY_REFUSED,
        "The proxy requires a user name and password (407). Put them into the URL of the proxy.",
    ),
    409: (
        Cause.ALREADY_SUBMITTED,
        "The authority has already answered this caller for this token (409). Use the first"
        " answer.",
    ),
    429: (Cause.RATE_LIMITED, "This caller exceeded its rate limit (429)."),
    502: (Cause.UNAVAILABLE, "A proxy cannot reach the authority (502)."),
    503: (Cause.UNAVAILABLE, "The authority cannot answer now (503)."),
    504: (Cause.UNAVAILABLE, "A proxy got no response from the authority in time (504)."),
}
_CLASSES: Mapping[int, tuple[Cause, str]] = {
    3: (Cause.REDIRECTED, "The response is a redirect ({}), which is not followed. Check the URL."),
    4: (Cause.REFUSED, "The authority refused the request ({}). Check the URL."),
    5: (Cause.UNAVAILABLE, "The authority failed ({})."),
}
_OTHER = (Cause.NOT_UNDERSTOOD, "A response with status {} is not a verdict.")
_AGAIN = frozenset({429, 502, 503, 504})


def _without_verdict(reply: HttpResponse, count: int, now: datetime) -> TransportError:
    status = reply.status
    cause, detail = _STATUSES.get(status) or _CLASSES.get(status // 100, _OTHER)
    fault = TransportError(cause, detail.format(status))
    if status not in _AGAIN:
        return fault
    most = most_at_once(reply.headers) if status == 429 else None
    return replace(
        fault,
        again=True,
        retry_after=parse_retry_after(reply.headers.get("retry-after"), now),
        at_most=most if most is not None and most < count else None,
    )


def most_at_once(headers: Mapping[str, str]) -> int | None:
    """Return how many camera tokens the RateLimit-Policy allows at once, or None if unlimited."""
    amounts = map(int, _VALIDATE_POLICY.findall(headers.get("ratelimit-policy", "")))
    return min(amounts, default=None) or None


def _not_understood(sentence: str) -> TransportError:
    return TransportError(Cause.NOT_UNDERSTOOD, f"{sentence}.")
