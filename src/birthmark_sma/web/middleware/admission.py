"""Refuse what the validator cannot take, before the body is read and parsed.

The endpoints that take camera tokens call these functions. A batch is checked twice: by its
Content-Length, before it is read, and by its real length, before it is parsed. From then on its
room is reserved, but never while it arrives: slow callers would occupy the pool.

The number of tokens is an upper bound. It may be too high, so nothing that fits is refused for it:
the pool compares what a caller has waiting with its share, whatever the next call brings. The bound
decides which calls have one token at most, and how much room is held while a body is parsed.
"""

import asyncio
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from birthmark_sma.authority.access.caller import Caller
from birthmark_sma.authority.validation.service import Validator
from birthmark_sma.storage.pool.pool import Reservation
from birthmark_sma.web.api.models.validation import MOST_TOKENS
from birthmark_sma.web.request_context import Header

# The shortest JSON of a camera token, with the comma before it, and that of the object around it.
# An escaped character only makes it longer.
_TOKEN_BYTES = len(
    ',{"encrypted_nuc_hash":"","table_id":0,"key_index":0,"nonce":""}' + 96 * "f" + 24 * "f"
)
_LOOKS, _LOOK_SECONDS = 4, 0.25
_AROUND_BYTES = len('{"tokens":[]}') - len(",")


def most_tokens(length: int | None) -> int:
    """Return how many well-formed tokens a batch of so many bytes has at most, at least 1.

    `length` is None if it is unknown. No batch has more than 1,000.
    """
    if length is None:
        return MOST_TOKENS
    return min(max(1, (length - _AROUND_BYTES) // _TOKEN_BYTES), MOST_TOKENS)


def announced_bytes(headers: Iterable[Header]) -> int | None:
    """Return the Content-Length, or None if the body has none."""
    for name, value in headers:
        if name == b"content-length":
            return int(value) if value.isdigit() else None
    return None


async def check_room(validator: Validator, caller: Caller, tokens: int = 1) -> None:
    """Raise PoolFullError if a request of up to so many tokens has no room within a second.

    The wait takes the top off short bursts. It also keeps the event loop free: a caller that
    repeats refused requests at once, with the body of a batch each time, gets one a second.
    """
    pool, who = validator.pool, caller.partition
    if pool.has_room(who, tokens):
        return
    for _ in range(_LOOKS):
        await asyncio.sleep(_LOOK_SECONDS)
        if pool.has_room(who, tokens):
            return
    pool.check(who, tokens)


@contextmanager
def reserved_room(validator: Validator, caller: Caller, tokens: int) -> Iterator[Reservation]:
    """Reserve room for up to so many tokens, until they are submitted. Raises PoolFullError."""
    room = validator.pool.reserve(caller.partition, tokens)
    try:
        yield room
    finally:
        validator.pool.release(room)
