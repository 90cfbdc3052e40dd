"""The client for threads.

An event loop in a thread of its own does the work, so that a deadline holds whatever a server
does: blocking sockets can only bound the wait for the next byte. Any number of threads may share a
client, and what they ask at once goes out together.
"""

import asyncio
import os
import ssl
import threading
import weakref
from collections.abc import Callable, Coroutine, Iterable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Self, TypeVar

from birthmark_sma.client.async_client import AsyncAuthorityClient
from birthmark_sma.client.bundle_verification import VerifiedBundle
from birthmark_sma.client.options import Options
from birthmark_sma.client.outcome import Outcome
from birthmark_sma.errors import ClientMisuseError
from birthmark_sma.protocol.camera_token import CameraToken

_T = TypeVar("_T")

_CLIENTS: "weakref.WeakSet[AuthorityClient]" = weakref.WeakSet()
_LEFT_BY_A_FORK: list[object] = []
"""Loops that belong to a parent process. Whoever closes them here disturbs them there."""


class AuthorityClient:
    """Asks one authority about camera tokens, from any thread.

    Open it once and keep it. Every method returns outcomes, and raises ClientMisuseError where the
    client is closed, TypeError for what is no camera token; nothing else. A process that forks may
    use it on both sides.
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
        """As for `AsyncAuthorityClient`. Raises ConfigurationError."""

        def begin() -> AsyncAuthorityClient:
            return AsyncAuthorityClient(
                url,
                access_key=access_key,
                client_certificate=client_certificate,
                ca_file=ca_file,
                tls=tls,
                proxy=proxy,
                plaintext=plaintext,
                options=options,
            )

        self._begin = begin
        self._lock = threading.Lock()
        self._closed = False
        self._worker: _Worker | None = _Worker(begin())
        _CLIENTS.add(self)

    def validate(self, camera_token: CameraToken, *, deadline: float | None = None) -> Outcome:
        """Ask about one camera token; the outcome is there after `deadline` seconds at the latest.

        Without one, that of the options counts.
        """
        return self._run(lambda client: client.validate(camera_token, deadline=deadline))

    def validate_many(
        self, camera_tokens: Iterable[CameraToken], *, deadline: float | None = None
    ) -> list[Outcome]:
        """Ask about any number; the outcomes are in the order of the camera tokens."""
        tokens = [*camera_tokens]
        return self._run(lambda client: client.validate_many(tokens, deadline=deadline))

    def validate_bundle(self, bundle: VerifiedBundle, *, deadline: float | None = None) -> Outcome:
        """Ask about the camera token of a bundle that `verify_bundle` found good.

        As for `AsyncAuthorityClient`.
        """
        return self._run(lambda client: client.validate_bundle(bundle, deadline=deadline))

    def close(self) -> None:
        """Let what is on its way come to its end, at most until its deadline; then close."""
        with self._lock:
            worker, self._worker, self._closed = self._worker, None, True
        if worker is not None:
            worker.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        worker = getattr(self, "_worker", None)
        if worker is not None:
            worker.stop()

    def _run(self, call: Callable[[AsyncAuthorityClient], Coroutine[Any, Any, _T]]) -> _T:
        # Under the lock, so that no call comes to a loop after `close` did.
        with self._lock:
            if self._closed:
                raise ClientMisuseError("This client is closed.")
            if self._worker is None:
                self._worker = _Worker(self._begin())
            future = self._worker.submit(call)
        try:
            return future.result()
        except BaseException:  # such as Ctrl-C: nobody waits for it any more
            future.cancel()
            raise

    def _forked(self) -> None:
        """Leave the parent's connections to the parent; the next call opens new ones."""
        self._lock = threading.Lock()
        if self._worker is not None:
            _LEFT_BY_A_FORK.append(self._worker)
            self._worker = None


class _Worker:
    """A thread with an event loop, and the client that lives there."""

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
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._loop.stop)


def _turn(loop: asyncio.AbstractEventLoop) -> None:
    """Turn until stopped, then end what is left."""
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


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
