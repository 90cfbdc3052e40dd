"""Do an action of the dashboard: its actor, its thread, and the page that shows the act.

Called by all pages of `actions`. A form changes something only if a page of this session made it
(`forms.read_session_form`). The response to a form that acted is a redirect, so that reloading the
page repeats nothing. The only exception is a new secret, which no redirect may carry.
"""

from collections.abc import Callable
from datetime import timedelta
from typing import TypeVar

from sqlalchemy import Connection
from starlette.responses import RedirectResponse, Response

from birthmark_sma.authority.acts import search as act_search
from birthmark_sma.authority.acts.actor import ActKind, Actor, Source
from birthmark_sma.authority.acts.search import ActFilter, RecordedAct
from birthmark_sma.errors import UnauthenticatedError
from birthmark_sma.web.middleware.timeouts import run_with_timeout
from birthmark_sma.web.query_params import link
from birthmark_sma.web.server_state import ApiRequest

ACT = "/dashboard/act"
_ACTS = "/dashboard/acts"
_SECONDS = 60.0
"""The time of an action. An act on 10,000 devices takes seconds, and more on a busy machine."""
_SENT_TWICE = timedelta(minutes=10)

Result = TypeVar("Result")


def find_actor(request: ApiRequest) -> Actor:
    """Return the actor of an action: the access key of the session, and its scope as the role.

    Raises UnauthenticatedError without a key, which no route that requires credentials lets in.
    """
    key = request.context.known_caller.key
    if key is None:
        raise UnauthenticatedError("Sign in with an access key to change something here.")
    return Actor(key.name, Source.DASHBOARD, key.scope.value, request.context.request_id)


async def perform(request: ApiRequest, work: Callable[[], Result]) -> Result:
    """Run `work` in a thread and return its result.

    Raises DatabaseUnavailableError, also after 60 seconds, and PoolFullError.
    """
    return await run_with_timeout(request.server.slow, work, _SECONDS)


def find_act(connection: Connection, request: ApiRequest) -> RecordedAct | None:
    """Return the act that this request has just recorded."""
    return act_search.find_by_request(connection, request.context.request_id)


def find_earlier(
    connection: Connection, request: ApiRequest, kind: ActKind, subject: str
) -> RecordedAct | None:
    """Return the same act of the same actor on a subject in the last 10 minutes, or None.

    So a form that was sent twice shows the act, in place of an error.
    """
    actor = find_actor(request).name
    wanted = ActFilter(act=kind, actor=actor, subject=subject, source=Source.DASHBOARD)
    found = act_search.search(connection, wanted, limit=1)
    now = request.server.authority.database.clock.now()
    return found[0] if found and abs(now - found[0].acted_at) < _SENT_TWICE else None


def show_act(act: RecordedAct | None) -> Response:
    """Return the redirect to the page of an act that has just been done (POST, redirect, GET)."""
    place = _ACTS if act is None else link(ACT, {"id": act.id, "done": "yes"})
    return RedirectResponse(place, 303, {"Cache-Control": "no-store"})
