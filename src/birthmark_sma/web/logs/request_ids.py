"""A name for each request, in its answer and in the log: the sender's own, or a new one."""

import re
import secrets
import threading
from collections.abc import Sequence
from itertools import count

from starlette.types import Scope

from birthmark_sma.runtime.log_context import WORKING_FOR, current_requests

HEADER = "X-Request-ID"
_NAME = HEADER.lower().encode()
_ID = "request_id"

_ACCEPTED = re.compile(rb"[A-Za-z0-9._~:/+=@,-]{1,128}")
_LIKE_A_KEY = b"sma_"  # what looks like an access key was put there by mistake
_numbers = count()
_process = secrets.token_hex(6)


class _Direct:
    """The request that is being answered without a task, so without a context of its own.

    Two assignments cost a tenth of what a context variable would.
    """

    __slots__ = ("scope", "thread")

    def __init__(self) -> None:
        self.scope: Scope | None = None
        self.thread = 0


DIRECT = _Direct()


def get_request_id(scope: Scope) -> str:
    """Return the id of a request; the first to ask decides it.

    That of the sender, if it gave just one, of 1 to 128 characters that are safe in any log.
    """
    known: str | None = scope.get(_ID)
    if known is None:  # the log may ask from another thread: only one of the two decides
        known = scope.setdefault(_ID, _given(scope) or new_id())
    return known


def mark_event_loop_thread() -> None:
    """Say that this is the thread of the event loop."""
    DIRECT.thread = threading.get_ident()


def bind_request(scope: Scope) -> None:
    """Say that this task, and whatever gets its context, works for this request from now on."""
    get_request_id(scope)  # before anybody copies the scope, and decides anew
    WORKING_FOR.set(lambda: (scope,))


def requests_in_progress() -> Sequence[Scope]:
    """Return the requests that this thread works for right now, from whatever room is asked."""
    scope = DIRECT.scope
    if scope is not None and threading.get_ident() == DIRECT.thread:
        return (scope,)
    return current_requests()


def new_id() -> str:
    """Return an id that no other request has, in any process."""
    return f"{_process}-{next(_numbers):x}"


def _given(scope: Scope) -> str | None:
    given = None
    for name, value in scope["headers"]:
        if name == _NAME:
            if given is not None:
                return None
            given = value
    if given is None or not _ACCEPTED.fullmatch(given) or _LIKE_A_KEY in given:
        return None
    text: str = given.decode("ascii")
    return text
