"""Validate camera tokens from threads.

An event loop in its own thread runs the `async_client`. The deadline therefore holds whatever the
server does: a blocking socket can only bound the wait for the next byte. Any number of threads may
share a client, and their concurrent calls share batches.
"""

import asyncio
import os
import ssl
import threading
import weakref
from collections.abc import Callable, Coroutine, Iterable, Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any, Self, TypeVar

from birthmark_sma.client.async_client import AsyncAuthorityClient
from birthmark_sma.client.bundle_verification import VerifiedBundle
from birthmark_sma.client.options import Options
from birthmark_sma.client.outcome import Outcome
from birthmark_sma.errors import ClientMisuseError
from birthmark_sma.protocol.camera_token import CameraToken

_T = TypeVar("_T")

# All clients of the process, for `_after_fork`. Weak, so that unused clients can be collected.
_CLIENTS: "weakref.WeakSet[AuthorityClient]" = weakref.WeakSet()
_LEFT_BY_A_FORK: list[object] = []
"""Event loops that a forked child inherited. Closing one here would disturb it in the parent.

The list keeps them referenced, so that they are never collected and closed.
"""


class AuthorityClient:
    """Validates camera tokens with one authority, from any thread.

    Open it once and keep it. Every method returns outcomes. It raises only ClientMisuseError (the
    client is closed) and TypeError (an argument is not a camera token). After a fork, both
    processes may use it.
    """

    def __init__(
        self,
        url: str,
        *,
        access_key: str | None = None,
        client_certificate: Sequence[Path] | None = None,
        ca_file: Path | None = None,
        tls: ssl.SSLContext | None = None,
        proxy: str | None = None,
        plaintext: bool = False,
        options: Options | None = None,
    ) -> None:
        """Configure the client, as for `AsyncAuthorityClient`. Raises ConfigurationError."""
        self._begin = partial(
            AsyncAuthorityClient,
            url,
            access_key=access_key,
            client_certificate=client_certificate,
            ca_file=ca_file,
            tls=tls,
            proxy=proxy,
            plaintext=plaintext,
            options=options,
        )
        self._lock = threading.Lock()
        self._closed = False
        self._worker: _Worker | None = _Worker(self._begin())
        _CLIENTS.add(self)

    def validate(self, camera_token: CameraToken, *, deadline: float | None = None) -> Outcome:
        """Validate one camera token, and return the outcome within `deadline` seconds.

        The default is the deadline of the options.
        """
        return self._run(lambda client: client.validate(camera_token, deadline=deadline))

    def validate_many(
        self, camera_tokens: Iterable[CameraToken], *, deadline: float | None = None
    ) -> list[Outcome]:
        """Validate any number of camera tokens, and return the outcomes in the same order."""
        tokens = [*camera_tokens]
        return self._run(lambda client: client.validate_many(tokens, deadline=deadline))

    def validate_bundle(self, bundle: VerifiedBundle, *, deadline: float | None = None) -> Outcome:
        """Validate the camera token of a bundle that `verify_bundle` returned.

        See `AsyncAuthorityClient.validate_bundle`.
        """
        return self._run(lambda client: client.validate_bundle(bundle, deadline=deadline))

    def close(self) -> None:
        """Wait for pending calls, at most until their deadlines, and close the connections."""
        with self._lock:
            worker, self._worker, self._closed = self._worker, None, True
        if worker is not None:
            worker.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        # `__init__` may have raised before it set the attribute.
        worker = getattr(self, "_worker", None)
        if worker is not None:
            worker.stop()

    def _run(self, call: Callable[[AsyncAuthorityClient], Coroutine[Any, Any, _T]]) -> _T:
        # Hold the lock, so that no call reaches a loop after `close` has stopped it.
        with self._lock:
            if self._closed:
                raise ClientMisuseError("This client is closed. Create a new one.")
            if self._worker is None:
                self._worker = _Worker(self._begin())
            future = self._worker.submit(call)
        try:
            return future.result()
        except BaseException:  # such as Ctrl-C: cancel the request, because its caller is gone
            future.cancel()
            raise

    def _forked(self) -> None:
        """Leave the parent's connections alone in a forked child. The next call opens new ones."""
        # The parent's lock may be held by a thread that does not exist in the child.
        self._lock = threading.Lock()
        if self._worker is not None:
            _LEFT_BY_A_FORK.append(self._worker)
            self._worker = None


class _Worker:
    """A thread with an event loop, and the client that runs in it."""

    def __init__(self, client: AsyncAuthorityClient) -> None:
        self._client = client
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=_turn, args=(self._loop,), name="birthmark-sma-client", daemon=True
        )
        self._thread.start()

    def submit(
        self, call: Callable[[AsyncAuthorityClient], Coroutine[Any, Any, _T]]
    ) -> "Future[_T]":
        return asyncio.run_coroutine_threadsafe(call(self._client), self._loop)

    def close(self) -> None:
        self.submit(AsyncAuthorityClient.close).result()
        self.stop()
        self._thread.join()

    def stop(self) -> None:
        # `_turn` closes the loop itself once it stops.
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._loop.stop)


def _turn(loop: asyncio.AbstractEventLoop) -> None:
    """Run the event loop until it is stopped, then cancel the remaining tasks and close it."""
    try:
        loop.run_forever()
    finally:
        loop.run_until_complete(_end_what_is_left())
        loop.close()


async def _end_what_is_left() -> None:
    left = asyncio.all_tasks() - {asyncio.current_task()}
    for task in left:
        task.cancel()
    await asyncio.gather(*left, return_exceptions=True)


def _after_fork() -> None:
    for client in _CLIENTS:
        client._forked()


# Only the forking thread survives in the child, so the worker threads of all clients are gone
# there.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
