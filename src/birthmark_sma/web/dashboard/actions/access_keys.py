"""Dashboard pages to create, rotate and revoke access keys.

The rules are in `authority/access/keys.py`. A secret is in one response only, the one to the form
that made it: never in a URL, a cache or the log. So this response is no redirect; a form that is
sent again changes nothing.
"""

from datetime import timedelta
from enum import StrEnum
from typing import Any

from fastapi import APIRouter
from sqlalchemy import Connection
from starlette.datastructures import QueryParams
from starlette.responses import Response

from birthmark_sma.authority.access import keys
from birthmark_sma.authority.access import store as access_key_store
from birthmark_sma.authority.access.keys import IssuedKey, KeyTerms
from birthmark_sma.authority.access.store import AccessKey, KeyScope
from birthmark_sma.authority.acts.actor import ActKind
from birthmark_sma.config import Disclosure
from birthmark_sma.errors import (
    AccessKeyNameError,
    AccessKeyRefusedError,
    UnknownAccessKeyError,
)
from birthmark_sma.web.dashboard import rendering
from birthmark_sma.web.dashboard.actions.performing import (
    find_act,
    find_actor,
    find_earlier,
    perform,
    show_act,
)
from birthmark_sma.web.dashboard.forms import read_session_form
from birthmark_sma.web.query_params import (
    Source,
    parse_choice,
    parse_name,
    parse_number,
    parse_text,
    parse_time,
    refused,
)
from birthmark_sma.web.routes import KEY_CREATION, KEY_REVOCATION, KEY_ROTATION
from birthmark_sma.web.server_state import ApiRequest

router = APIRouter(include_in_schema=False)


_FIELDS = ("name", "scope", "expires", "rate", "disclosure", "family", "uses", "may_re_enrol")


class Grace(StrEnum):
    """The time for which the old secret of a rotated key stays valid."""

    NONE = "none"
    HOUR = "1 hour"
    DAY = "1 day"
    WEEK = "7 days"
    MONTH = "30 days"


_GRACES = {
    Grace.NONE: timedelta(0),
    Grace.HOUR: timedelta(hours=1),
    Grace.DAY: timedelta(days=1),
    Grace.WEEK: timedelta(days=7),
    Grace.MONTH: timedelta(days=30),
}


async def show_terms(request: ApiRequest) -> Response:
    """Show the form of a new key."""
    return _show_terms(request, QueryParams())


async def create(request: ApiRequest) -> Response:
    """Create a key and show its secret. Raises RequestError if the form is of another site."""
    form = await read_session_form(request)
    try:
        terms = _parse_terms(form)
        return await perform(
            request,
            lambda: _show_secret(
                request,
                keys.create_key(request.server.authority.database, terms, find_actor(request)),
            ),
        )
    except (AccessKeyRefusedError, AccessKeyNameError) as error:
        return _show_terms(request, form, str(error))


async def show_rotation(request: ApiRequest) -> Response:
    """Show a key, and ask for confirmation to give it a new secret."""
    return await _show_key(request, "actions/key_rotation.html", _parse_id(request))


async def rotate(request: ApiRequest) -> Response:
    """Rotate a key and show its new secret. Raises RequestError if the form is of another site."""
    form = await read_session_form(request)
    key_id, seen = _parse_id(form), form.get("seen", "")
    grace = _GRACES[parse_choice(form, "grace", Grace) or Grace.DAY]
    try:
        return await perform(
            request,
            lambda: _show_secret(
                request,
                keys.rotate_key(
                    request.server.authority.database,
                    key_id,
                    grace,
                    find_actor(request),
                    expected=seen,
                ),
            ),
        )
    except AccessKeyRefusedError as error:
        return await _show_key(request, "actions/key_rotation.html", key_id, str(error))


async def show_revocation(request: ApiRequest) -> Response:
    """Show a key, and ask for confirmation to revoke it."""
    return await _show_key(request, "actions/key_revocation.html", _parse_id(request))


async def revoke(request: ApiRequest) -> Response:
    """Revoke a key for ever. Raises RequestError if the form is of another site."""
    form = await read_session_form(request)
    key_id, seen = _parse_id(form), form.get("seen", "")

    def work() -> Response:
        database = request.server.authority.database
        try:
            keys.revoke_key(database, key_id, find_actor(request), expected=seen)
        except UnknownAccessKeyError:
            with database.read() as connection:
                done = find_earlier(connection, request, ActKind.ACCESS_KEY_REVOKE, key_id)
            if done is None:
                raise
            return show_act(done)
        with database.read() as connection:
            return show_act(find_act(connection, request))

    try:
        return await perform(request, work)
    except AccessKeyRefusedError as error:
        return await _show_key(request, "actions/key_revocation.html", key_id, str(error))


router.add_api_route(KEY_CREATION.path, show_terms, methods=["GET"])
router.add_api_route(KEY_CREATION.path, create, methods=["POST"])
router.add_api_route(KEY_ROTATION.path, show_rotation, methods=["GET"])
router.add_api_route(KEY_ROTATION.path, rotate, methods=["POST"])
router.add_api_route(KEY_REVOCATION.path, show_revocation, methods=["GET"])
router.add_api_route(KEY_REVOCATION.path, revoke, methods=["POST"])


def _parse_terms(form: QueryParams) -> KeyTerms:
    scope = parse_choice(form, "scope", KeyScope)
    if scope is None:
        raise AccessKeyRefusedError("Choose the scope of the key.")
    disclosure = parse_choice(form, "disclosure", Disclosure)
    uses = parse_number(form, "uses")
    if uses == 0:
        raise AccessKeyRefusedError("A key may provision at least one device.")
    return KeyTerms(
        name=parse_text(form, "name") or "",
        scope=scope,
        expires_at=parse_time(form, "expires"),
        device_family=parse_name(form, "family"),
        uses_allowed=uses,
        may_re_enrol=parse_text(form, "may_re_enrol") is not None,
        disclosure=None if disclosure is None else disclosure.value,
        rate_limit=parse_text(form, "rate"),
    )


def _show_terms(request: ApiRequest, form: QueryParams, fault: str | None = None) -> Response:
    html = rendering.render(
        request,
        "actions/key_creation.html",
        typed={name: form.get(name, "") for name in _FIELDS},
        fault=fault,
        scopes=list(KeyScope),
        disclosures=[each.value for each in Disclosure],
    )
    return rendering.html_response(html, 200 if fault is None else 422)


def _show_secret(request: ApiRequest, issued: IssuedKey) -> Response:
    with request.server.authority.database.read() as connection:
        act = find_act(connection, request)
    html = rendering.render(request, "actions/key_secret.html", issued=issued, act=act)
    return rendering.html_response(html)


def _parse_id(source: Source) -> str:
    key_id = parse_text(source, "key")
    if key_id is None:
        raise refused("key is the id of an access key.")
    return key_id


async def _show_key(
    request: ApiRequest, template: str, key_id: str, fault: str | None = None
) -> Response:
    """Return the page that asks for confirmation. Raises UnknownAccessKeyError."""

    def work() -> Response:
        with request.server.authority.database.read() as connection:
            values = _describe(connection, request, key_id)
        html = rendering.render(request, template, fault=fault, **values)
        return rendering.html_response(html, 200 if fault is None else 409)

    return await perform(request, work)


def _describe(connection: Connection, request: ApiRequest, key_id: str) -> dict[str, Any]:
    now = request.server.authority.database.clock.now()
    every = access_key_store.all_keys(connection)
    key = next((each for each in every if each.key_id == key_id), None)
    if key is None or key.revoked_at is not None:
        raise UnknownAccessKeyError(f"No key that is not revoked has the id {key_id}.")
    own = request.context.known_caller.key
    return {
        "key": key,
        "seen": keys.fingerprint(key),
        "state": key.state_at(now),
        "is_own": own is not None and own.key_id == key.key_id,
        "is_last": _is_last_admin(key, [each for each in every if each.is_good(now)]),
        "graces": list(Grace),
        "usual": Grace.DAY,
    }


def _is_last_admin(key: AccessKey, good: list[AccessKey]) -> bool:
    admins = [each.key_id for each in good if each.scope is KeyScope.ADMIN]
    return admins == [key.key_id]
