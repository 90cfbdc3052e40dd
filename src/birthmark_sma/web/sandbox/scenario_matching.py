"""Find the scenario that a request names in its header or its body.

`fault_injection` calls this before the application reads the body. It must never consume the body:
`peek` returns a `receive` that yields it again.
"""

from collections.abc import Sequence
from typing import Any

from starlette.types import Message, Receive

from birthmark_sma.authority.sandbox.verdicts import ALREADY_SUBMITTED, VERDICTS
from birthmark_sma.web.middleware.request_body import parse_json
from birthmark_sma.web.problems import InvalidRequestError
from birthmark_sma.web.request_context import RequestContext
from birthmark_sma.web.routes import (
    CRL,
    PROVISION,
    VALIDATE,
    VALIDATE_BATCH,
    VALIDATE_LEGACY,
    VALIDATE_PUBLISHED,
    Route,
)
from birthmark_sma.web.sandbox import scenario_catalog
from birthmark_sma.web.sandbox.scenario_catalog import Asked, Endpoint, UnknownScenarioError

_VALIDATIONS = frozenset({VALIDATE, VALIDATE_BATCH, VALIDATE_PUBLISHED, VALIDATE_LEGACY})
_SPOKEN_TO = _VALIDATIONS | {PROVISION}  # the routes whose bodies can name a scenario
_BODY_BYTES = 1024 * 1024  # limits the memory for the copy of a body


async def peek(context: RequestContext, receive: Receive) -> tuple[bytes, Receive]:
    """Return the body of a validation or provisioning request, and a `receive` that repeats it.

    Other requests return an empty body. So do bodies of more than 1 MiB, which name no scenario;
    the part that was read is repeated, too.
    """
    if context.method != "POST" or context.route not in _SPOKEN_TO:
        return b"", receive
    messages: list[Message] = []
    body = bytearray()
    more = True
    while more and len(body) <= _BODY_BYTES:
        message = await receive()
        messages.append(message)
        body += message.get("body", b"")
        more = message.get("more_body", False)
    kept = iter(messages)

    async def again() -> Message:
        return next(kept, None) or await receive()

    return (b"" if more else bytes(body)), again


def find(route: Route, headers: Sequence[bytes], body: bytes) -> Asked | None:
    """Return the scenario that a request names, or None.

    `headers` are the values of its scenario headers. Raises UnknownScenarioError if there is more
    than one header, if the header names no scenario, or if the scenario is for other requests.
    """
    if len(headers) > 1:
        raise UnknownScenarioError(f"{scenario_catalog.HEADER} stands in the request twice.")
    if headers:
        asked_for: Asked | None = scenario_catalog.by_header(headers[0].decode("latin-1"))
    else:
        asked_for = _find_in_body(route, body)
    if asked_for is not None:
        _check_place(asked_for, route)
    return asked_for


def parsed(body: bytes) -> Any:
    """Return the parsed JSON, or None if it is invalid. The authority then returns the error."""
    try:
        return parse_json(body)
    except InvalidRequestError:
        return None


def list_tokens(body: bytes) -> Sequence[object]:
    """Return the elements of a batch, without checking them; empty if it is no batch."""
    value = parsed(body)
    tokens = value.get("tokens") if isinstance(value, dict) else None
    return tokens if isinstance(tokens, list) else ()


def _find_in_body(route: Route, body: bytes) -> Asked | None:
    if not body:
        return None
    if route is VALIDATE_BATCH:
        return _of_batch([scenario_catalog.by_token(each) for each in list_tokens(body)])
    value = parsed(body)
    if route is VALIDATE:
        return scenario_catalog.by_token(value)
    if route is PROVISION and isinstance(value, dict):
        return scenario_catalog.by_serial(value.get("device_serial"))
    return None  # the published API has no field for the table ids of scenarios


def _of_batch(each_asks: Sequence[Asked | None]) -> Asked | None:
    """Return the scenario of a whole batch: the first element's that is not a verdict.

    The authority gives each element its own verdict. "already-submitted" also applies to single
    elements, so any other scenario has priority over it.
    """
    more = [
        each for each in each_asks if each is not None and each.scenario.table_id not in VERDICTS
    ]
    of_all = (each for each in more if each.scenario.table_id != ALREADY_SUBMITTED)
    return next(of_all, more[0] if more else None)


def _check_place(asked_for: Asked, route: Route) -> None:
    place = asked_for.scenario.place
    fits = {
        Endpoint.ANYWHERE: True,
        Endpoint.VALIDATION: route in _VALIDATIONS,
        Endpoint.PROVISIONING: route is PROVISION,
        Endpoint.TIMED: route in _SPOKEN_TO or route is CRL,
    }
    if not fits[place]:
        raise UnknownScenarioError(
            f"The scenario {asked_for.scenario.name} is for {place.value} alone."
        )
