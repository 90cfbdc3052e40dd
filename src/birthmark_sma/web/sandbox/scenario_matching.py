"""Find out what a request asks for: by its header, or by what stands in its body."""

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
_SPOKEN_TO = _VALIDATIONS | {provision.PATH}
_BODY_BYTES = 1024 * 1024


async def peek(scope: Scope, receive: Receive) -> tuple[bytes, Receive]:
    """Return the body of a request that counts here, and how to read it again.

    One that is too large is handed on as far as it was read, and asks for nothing.
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
    """Return what a request asks for, given its headers of our name and its body.

    Raises UnknownScenarioError for a header that says nothing, and where a scenario is asked for
    that is for other requests.
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
    """Return JSON as parsed, or None where it is none: the authority says what is wrong with it."""
    try:
        return parse_json(body)
    except InvalidRequestError:
        return None


def list_tokens(body: bytes) -> Sequence[object]:
    """Return the elements of a batch, whatever they are."""
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
    return None  # the published form has no place for the table ids of scripts


def _of_batch(each_asks: Sequence[Asked | None]) -> Asked | None:
    """Return what decides for the whole request: the first that asks for what is no verdict.

    Verdicts each element gets by itself, from the authority; and so does it none, where it was
    submitted before.
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
