"""All ways to validate tokens with the clients, as one interface, to test each fault with all."""

import asyncio
import secrets
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from birthmark_sma.client import AsyncAuthorityClient, AuthorityClient, Options, Outcome
from birthmark_sma.protocol.camera_token import CameraToken

IMPATIENT = Options(
    deadline=1.5,
    connect_timeout=0.5,
    read_timeout=0.5,
    attempts=3,
    backoff=0.005,
    max_backoff=0.02,
    circuit_failures=1_000,
)
"""Options with which a fault costs a test about 0.5 s, and the circuit breaker does not open."""

Ask: TypeAlias = Callable[..., Sequence[Outcome]]


def some_token() -> CameraToken:
    """Return a well-formed camera token that no device made."""
    return CameraToken(secrets.token_bytes(48), 1, 2, secrets.token_bytes(12))


def _single(url: str, **arguments: Any) -> Sequence[Outcome]:
    with AuthorityClient(url, **arguments) as client:
        return [client.validate(some_token())]


def _batch(url: str, **arguments: Any) -> Sequence[Outcome]:
    with AuthorityClient(url, **arguments) as client:
        return client.validate_many([some_token() for _ in range(3)])


def _single_async(url: str, **arguments: Any) -> Sequence[Outcome]:
    async def ask() -> Sequence[Outcome]:
        async with AsyncAuthorityClient(url, **arguments) as client:
            return [await client.validate(some_token())]

    return asyncio.run(ask())


def _batch_async(url: str, **arguments: Any) -> Sequence[Outcome]:
    async def ask() -> Sequence[Outcome]:
        async with AsyncAuthorityClient(url, **arguments) as client:
            return await client.validate_many([some_token() for _ in range(3)])

    return asyncio.run(ask())


CALLS: dict[str, Ask] = {
    "single": _single,
    "batch": _batch,
    "single-async": _single_async,
    "batch-async": _batch_async,
}
