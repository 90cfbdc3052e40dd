"""A name for each request, in its answer and in the log: the sender's own, or a new one."""

import re
import secrets
from itertools import count

from starlette.types import Scope

HEADER = "X-Request-ID"
_NAME = HEADER.lower().encode()
_ID = "request_id"

_ACCEPTED = re.compile(rb"[A-Za-z0-9._~:/+=@,-]{1,128}")
_LIKE_A_KEY = b"sma_"  # what looks like an access key was put there by mistake
_numbers = count()
_process = secrets.token_hex(6)


def request_id_of(scope: Scope) -> str:
    """Return the id of a request; the first to ask decides it.

    That of the sender, if it gave just one, of 1 to 128 characters that are safe in any log.
    """
    known: str | None = scope.get(_ID)
    if known is None:
        known = scope[_ID] = _given(scope) or new_id()
    return known


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
