"""Cache a certificate revocation list (CRL), and keep it fresh.

    intermediate = x509.load_der_x509_certificate(...)  # signs the list
    crls = CrlCache(
        "https://sma.example.org/pki/intermediate.crl",
        load=partial(RevocationList.load, issuer=intermediate),
    )
    verify_bundle(received, root=root, now=datetime.now(UTC), crl=crls.get().crl)

`get` fetches the list on first use, every `refresh` seconds, and at `nextUpdate`. A server that has
no newer list answers 304. While fetches fail, `get` returns the last good list with the reason, and
new attempts follow after growing pauses. A list that does not load, that is from the future, or
that has a lower number than the cached one must never replace the cached one.

Create one cache per process and list. `AsyncCrlCache` is the same for asyncio.
"""

import asyncio
import logging
import secrets
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Generic, Protocol, TypeVar

import httpx2

from birthmark_sma.client.transport import (
    COMPRESSED,
    check_authority_url,
    headers_for,
    is_compressed,
    make_http_client,
    read_body,
    tls_context,
    to_transport_error,
)
from birthmark_sma.errors import RevocationUnknownError
from birthmark_sma.http_requests import draw_pause, parse_retry_after
from birthmark_sma.pki.profiles import CLOCK_SKEW

REFRESH_SECONDS = 300.0
FETCH_SECONDS = 30.0
MAX_CRL_BYTES = 32 * 1024 * 1024
"""About 500,000 entries."""
_FIRST_PAUSE_SECONDS = 1.0
_LONGEST_PAUSE_SECONDS = 60.0
_LONGEST_RETRY_AFTER_SECONDS = 600.0

_log = logging.getLogger(__name__)
_chance = secrets.SystemRandom().random


class Crl(Protocol):
    """The attributes of a list that the cache reads. `RevocationList` has them."""

    @property
    def number(self) -> int:
        """The CRL number. It never decreases (RFC 5280, section 5.2.3)."""

    @property
    def this_update(self) -> datetime:
        """The time from which the list is valid."""

    @property
    def next_update(self) -> datetime:
        """The time until which the list is valid."""


L = TypeVar("L", bound=Crl)


@dataclass(frozen=True, slots=True)
class CachedCrl(Generic[L]):
    """The newest list that the cache could get.

    `confirmed_at` is the time at which the server last confirmed it as the newest. `stale` is True
    after its `nextUpdate`: `verify_bundle` then refuses it. `trouble` is the reason why the last
    refresh failed, or None.
    """

    crl: L
    confirmed_at: datetime
    stale: bool
    trouble: str | None


@dataclass(frozen=True, slots=True)
class _Fetched:
    """A complete response. `body` is None if the server confirmed the cached list as the newest."""

    body: bytes | None
    validators: dict[str, str]


def _now() -> datetime:
    return datetime.now(UTC)


def _seconds() -> float:
    return time.monotonic()


class _FetchError(Exception):
    """A fetch that returned no list, with the reason."""

    def __init__(self, reason: str, retry_after: float | None = None) -> None:
        super().__init__(reason)
        self.retry_after = retry_after


@dataclass(frozen=True, slots=True)
class _Source:
    """The URL of a list. `fetch` sends one request, bounded in time and size."""

    url: str
    headers: dict[str, str]
    tls: ssl.SSLContext | None
    proxy: str | None
    seconds: float
    max_bytes: int

    async def fetch(self, validators: dict[str, str]) -> _Fetched:
        """Send one conditional request. Raises _FetchError."""
        try:
            async with (
                asyncio.timeout(self.seconds),
                make_http_client(self.headers, self.tls, self.proxy, timeout=self.seconds) as http,
                http.stream("GET", self.url, headers=validators) as response,
            ):
                return await self._read(response)
        except TimeoutError:
            raise _FetchError("The list did not arrive in time.") from None
        except (httpx2.HTTPError, httpx2.StreamError, OSError) as error:
            raise _FetchError(to_transport_error(error).detail) from None

    async def _read(self, response: httpx2.Response) -> _Fetched:
        headers = response.headers
        if response.status_code == 304:
            return _Fetched(None, {})
        if response.status_code != 200:
            raise _FetchError(
                f"The server sent no list but status {response.status_code}.",
                parse_retry_after(headers.get("retry-after"), _now()),
            )
        if is_compressed(response):
            raise _FetchError(COMPRESSED)
        body = await read_body(response, self.max_bytes)
        if body is None:
            raise _FetchError(f"The list has more than {self.max_bytes} bytes.")
        validators = {
            name: headers[kept]
            for name, kept in (("If-None-Match", "etag"), ("If-Modified-Since", "last-modified"))
            if kept in headers
        }
        return _Fetched(body, validators)


class _Keeper(Generic[L]):
    """The cached list, and the time of the next fetch. Only one thread may use it at a time."""

    def __init__(self, load: Callable[[bytes], L], refresh: float) -> None:
        self.load = load
        self.fetching = threading.Lock()
        """Held by the thread of a `CrlCache` that fetches the list."""
        self.validators: dict[str, str] = {}
        self._refresh = refresh
        self._crl: L | None = None
        self._confirmed_at = datetime.min.replace(tzinfo=UTC)
        self._trouble: str | None = None
        self._failures = 0
        self._due = 0.0

    @property
    def is_empty(self) -> bool:
        return self._crl is None

    def is_due(self) -> bool:
        """Return True if the next fetch may start.

        A list that ended since a good fetch is due at once. The monotonic clock does not show that
        if the machine slept meanwhile or its clock was set.
        """
        return _seconds() >= self._due or (not self._failures and self.is_stale())

    def is_stale(self) -> bool:
        """Return True if there is no cached list or its `nextUpdate` has passed."""
        return self._crl is None or self._crl.next_update < _now()

    def current(self) -> CachedCrl[L]:
        """Return the cached list. Raises RevocationUnknownError if there is none."""
        if self._crl is None:
            raise RevocationUnknownError(
                f"There is no revocation list yet. {self._trouble or 'It is being fetched.'}"
            )
        return CachedCrl(self._crl, self._confirmed_at, self.is_stale(), self._trouble)

    def took(self, crl: L | None, fetched: _Fetched) -> None:
        """Cache a list that loaded, or confirm the cached one if `crl` is None.

        Raises _FetchError if the list is from the future or has a lower number than the cached one.
        Also raises it if the list has expired; an expired list is cached all the same.
        """
        now = _now()
        kept = self._crl
        if crl is not None:
            if crl.this_update > now + CLOCK_SKEW:
                raise _FetchError(
                    "The list is dated in the future. Check the clock of this machine."
                )
            if kept is not None and crl.number < kept.number:
                raise _FetchError(
                    f"The list has number {crl.number}, which is lower than the number"
                    f" {kept.number} of the list before."
                )
            self._crl, self.validators = crl, fetched.validators
        self._confirmed_at = now
        if self.is_stale():
            raise _FetchError("The newest list of the authority has expired.")
        if self._failures:
            _log.info("The revocation list can be refreshed again")
        self._failures, self._trouble = 0, None
        left = (self._crl.next_update - now).total_seconds() if self._crl is not None else 0.0
        self._due = _seconds() + min(self._refresh, left)

    def failed(self, error: _FetchError) -> None:
        """Keep the cached list, and schedule the next attempt after a pause."""
        self._failures += 1
        pause = draw_pause(
            self._failures,
            first=_FIRST_PAUSE_SECONDS,
            longest=_LONGEST_PAUSE_SECONDS,
            chance=_chance,
        )
        pause = max(pause, min(error.retry_after or 0.0, _LONGEST_RETRY_AFTER_SECONDS))
        self._due = _seconds() + pause
        if str(error) != self._trouble:
            _log.warning("The revocation list cannot be refreshed: %s", error)
        self._trouble = str(error)


class _Cache(Generic[L]):
    """The arguments that both caches have."""

    def __init__(
        self,
        url: str,
        *,
        load: Callable[[bytes], L],
        refresh: float = REFRESH_SECONDS,
        access_key: str | None = None,
        ca_file: Path | None = None,
        tls: ssl.SSLContext | None = None,
        proxy: str | None = None,
        plaintext: bool = False,
        fetch_seconds: float = FETCH_SECONDS,
        max_bytes: int = MAX_CRL_BYTES,
    ) -> None:
        """Configure the cache. No request is sent.

        `load` turns DER into a list, and raises RevocationUnknownError if the list is unusable. The
        other arguments are as for `AsyncAuthorityClient`.

        Raises ConfigurationError.
        """
        self._source = _Source(
            check_authority_url(url, plaintext=plaintext, risk="keep revoked devices from you"),
            headers_for(access_key) | {"Accept": "application/pkix-crl"},
            tls or tls_context(ca_file, None),
            proxy,
            fetch_seconds,
            max_bytes,
        )
        self._keeper = _Keeper(load, refresh)


class AsyncCrlCache(_Cache[L], Generic[L]):
    """A cached revocation list for the tasks of one event loop."""

    _task: "asyncio.Task[None] | None" = None

    async def get(self) -> CachedCrl[L]:
        """Return the newest list. A refresh that is due runs in the background.

        `get` waits for the refresh only if there is no valid list yet. Raises
        RevocationUnknownError if there never was a list.
        """
        if self._task is None and self._keeper.is_due():
            self._task = asyncio.get_running_loop().create_task(self._run())
        if self._task is not None and self._keeper.is_stale():
            # A cancelled caller must not cancel the refresh that other callers wait for.
            await asyncio.shield(self._task)
        return self._keeper.current()

    async def close(self) -> None:
        """Cancel a running refresh."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        try:
            await refresh_once(self._source, self._keeper)
        finally:
            self._task = None


class CrlCache(_Cache[L], Generic[L]):
    """A cached revocation list for the threads of one process."""

    def get(self) -> CachedCrl[L]:
        """Return the newest list. The thread that finds a refresh due runs it.

        Other threads get the cached list, and wait only if it is not valid. Raises
        RevocationUnknownError if there never was a list. In a coroutine, use `AsyncCrlCache`.
        """
        keeper = self._keeper
        # Wait for another thread's fetch only if there is no valid list to return meanwhile.
        if keeper.is_due() and keeper.fetching.acquire(blocking=keeper.is_stale()):
            try:
                if keeper.is_due():  # another thread may have refreshed it meanwhile
                    asyncio.run(refresh_once(self._source, keeper))
            finally:
                keeper.fetching.release()
        return keeper.current()


async def refresh_once(source: _Source, keeper: _Keeper[L]) -> None:
    """Fetch the list once, and cache it if it is good. Raises nothing."""
    try:
        fetched = await source.fetch(keeper.validators)
        crl = None
        if fetched.body is not None:
            # Loading takes about one second per 100,000 entries, too long for the event loop.
            crl = await asyncio.to_thread(_loaded, keeper.load, fetched.body)
        elif keeper.is_empty:
            raise _FetchError("The server answered 304 (Not Modified), but no list is cached here.")
        keeper.took(crl, fetched)
    except _FetchError as error:
        keeper.failed(error)


def _loaded(load: Callable[[bytes], L], body: bytes) -> L:
    """Load a list, in a thread. Every error becomes a _FetchError, so the last good list stays."""
    try:
        return load(body)
    except RevocationUnknownError as error:
        raise _FetchError(str(error)) from None
    except Exception:
        _log.exception("The revocation list could not be loaded")
        raise _FetchError("The list could not be loaded. The log has the error.") from None
