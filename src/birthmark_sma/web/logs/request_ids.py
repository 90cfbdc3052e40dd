"""Request ids: accept the client's X-Request-ID or create a new id.

The id appears in the response and in every log record of the request. All layers of the server call
`get_request_id`. An id from a client must never reach the log unchecked: it could forge log lines
or contain an access key.
"""

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
_LIKE_A_KEY = b"sma_"  # access keys begin like this; the client sent one by mistake
_numbers = count()
_process = secrets.token_hex(6)


class _Direct:
    """The request that the fast path handles now. It has no task, so no context variables.

    Setting these fields costs a tenth of setting a context variable. The event loop's thread owns
    `scope`; other threads must compare their id with `thread` before they use it.
    """

    __slots__ = ("scope", "thread")

    def __init__(self) -> None:
        self.scope: Scope | None = None
        self.thread = 0


DIRECT = _Direct()


def get_request_id(scope: Scope) -> str:
    """Return the id of a request, and store it in the scope on the first call.

    This is the client's id if it sent exactly one X-Request-ID of 1 to 128 characters that are safe
    in any log. Otherwise it is a new id. Thread-safe.
    """
    known: str | None = scope.get(_ID)
    if known is None:
        # setdefault() is atomic: another thread may log a record of this request at this moment.
        known = scope.setdefault(_ID, _given(scope) or new_id())
    return known


def mark_event_loop_thread() -> None:
    """Mark the current thread as the thread of the event loop."""
    DIRECT.thread = threading.get_ident()


def bind_request(scope: Scope) -> None:
    """Bind a request to the current task and to all code that inherits its context."""
    get_request_id(scope)  # before any code copies the scope: each copy would get its own id
    WORKING_FOR.set(lambda: (scope,))


def requests_in_progress() -> Sequence[Scope]:
    """Return the requests that the current thread works for, on the fast path or the normal one."""
    scope = DIRECT.scope
    if scope is not None and threading.get_ident() == DIRECT.thread:
        return (scope,)
    return current_requests()


def new_id() -> str:
    """Return a new id that is unique among all processes of the server."""
    return f"{_process}-{next(_numbers):x}"


def _given(scope: Scope) -> str | None:
    """Return the client's id, or None if it sent no id, several ids or an unsafe one."""
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
