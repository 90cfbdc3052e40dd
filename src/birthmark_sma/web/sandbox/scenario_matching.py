"""Find the scenario that a request names in its header or its body.

`fault_injection` calls this before the application reads the body. It must never consume the body:
`peek` returns a `receive` that yields it again.
"""

from collections.abc import Sequence
from typing import Any

from starlette.types import Message, Receive, Scope

from birthmark_sma.authority.authority import CRL_PATH
from birthmark_sma.authority.sandbox.verdicts import ALREADY_SUBMITTED, VERDICTS
from birthmark_sma.web.api import provision, validate
from birthmark_sma.web.middleware.authentication import route_name
from birthmark_sma.web.middleware.request_body import parse_json
from birthmark_sma.web.problems import InvalidRequestError
from birthmark_sma.web.sandbox import scenario_catalog
from birthmark_sma.web.sandbox.scenario_catalog import Asked, Endpoint, UnknownScenarioError

_VALIDATIONS = frozenset(
    {validate.PATH, validate.BATCH_PATH, validate.PUBLISHED_PATH, validate.LEGACY_PATH}
)
_SPOKEN_TO = _VALIDATIONS | {provision.PATH}  # the paths whose bodies can name a scenario
_BODY_BYTES = 1024 * 1024  # limits the memory for the copy of a body


async def peek(scope: Scope, receive: Receive) -> tuple[bytes, Receive]:
    """Return the body of a validation or provisioning request, and a `receive` that repeats it.

    Other requests return an empty body. So do bodies of more than 1 MiB, which name no scenario;
    the part that was read is repeated, too.
    """
    if scope["method"] != "POST" or route_name(scope) not in _SPOKEN_TO:
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


def find(scope: Scope, headers: Sequence[bytes], body: bytes) -> Asked | None:
    """Return the scenario that a request names, or None.

    `headers` are the values of its scenario headers. Raises UnknownScenarioError if there is more
    than one header, if the header names no scenario, or if the scenario is for other requests.
    """
    if len(headers) > 1:
        raise UnknownScenarioError(f"{scenario_catalog.HEADER} stands in the request twice.")
    if headers:
        asked_for: Asked | None = scenario_catalog.by_header(headers[0].decode("latin-1"))
    else:
        asked_for = _find_in_body(scope, body)
    if asked_for is not None:
        _check_place(asked_for, scope)
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


def _find_in_body(scope: Scope, body: bytes) -> Asked | None:
    path = route_name(scope)
    if not body:
        return None
    if path == validate.BATCH_PATH:
        return _of_batch([scenario_catalog.by_token(each) for each in list_tokens(body)])
    value = parsed(body)
    if path == validate.PATH:
        return scenario_catalog.by_token(value)
    if path == provision.PATH and isinstance(value, dict):
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


def _check_place(asked_for: Asked, scope: Scope) -> None:
    path, place = route_name(scope), asked_for.scenario.place
    fits = {
        Endpoint.ANYWHERE: True,
        Endpoint.VALIDATION: path in _VALIDATIONS,
        Endpoint.PROVISIONING: path == provision.PATH,
        Endpoint.TIMED: path in _SPOKEN_TO or path == CRL_PATH,
    }
    if not fits[place]:
        raise UnknownScenarioError(
            f"The scenario {asked_for.scenario.name} is for {place.value} alone."
        )
