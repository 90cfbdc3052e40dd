"""Keep a revocation list (CRL) at hand, and fresh.

    intermediate = x509.load_der_x509_certificate(...)  # signs the list
    crls = CrlCache(
        "https://sma.example.org/pki/intermediate.crl",
        load=partial(RevocationList.load, issuer=intermediate),
    )
    verify_bundle(received, root=root, now=datetime.now(UTC), crl=crls.get().crl)

`get` fetches the list when it is first asked, every `refresh` seconds, and when `nextUpdate` comes;
a server that knows the list already answers 304. While fetches fail, the last good list is given
out, with the reason; new attempts are made after pauses that grow. A list that does not load, that
is from the future, or whose number is lower than that of the list that is kept, never replaces it.

Make one for each process and each list. `AsyncCrlCache` is the same for asyncio.
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

from birthmark_sma.client.responses import parse_retry_after
from birthmark_sma.client.transport import check_url, headers_for, tls_context, to_transport_error
from birthmark_sma.errors import RevocationUnknownError
from birthmark_sma.pki.profiles import CLOCK_SKEW

REFRESH_SECONDS = 300.0
FETCH_SECONDS = 30.0
MAX_CRL_BYTES = 32 * 1024 * 1024
"""Some 500,000 entries."""
_FIRST_PAUSE_SECONDS = 1.0
_LONGEST_PAUSE_SECONDS = 60.0
_LONGEST_RETRY_AFTER_SECONDS = 600.0

_log = logging.getLogger(__name__)
_chance = secrets.SystemRandom().random


class Crl(Protocol):
    """The part of a list that a cache looks at. `RevocationList` has it."""

    @property
    def number(self) -> int:
        """The CRL number, which only grows (RFC 5280, section 5.2.3)."""

    @property
    def this_update(self) -> datetime:
        """From when on the list counts."""

    @property
    def next_update(self) -> datetime:
        """Until when the list counts."""


L = TypeVar("L", bound=Crl)


@dataclass(frozen=True, slots=True)
class CachedCrl(Generic[L]):
    """The newest list that could be had.

    `confirmed_at` is when the server last said that it is the newest. `stale` is True once its
    `nextUpdate` is over: then `verify_bundle` refuses it. `trouble` says why the last attempt to
    refresh it failed, or is None.
    """

    crl: L
    confirmed_at: datetime
    stale: bool
    trouble: str | None


@dataclass(frozen=True, slots=True)
class _Fetched:
    """A whole answer: `body` is None where the server says that the kept list is the newest."""

    body: bytes | None
    validators: dict[str, str]


def _now() -> datetime:
    return datetime.now(UTC)


def _seconds() -> float:
    return time.monotonic()


class _FetchError(Exception):
    """A fetch that brought no list, with the reason."""

    def __init__(self, reason: str, retry_after: float | None = None) -> None:
        super().__init__(reason)
        self.retry_after = retry_after


class _Source:
    """The URL of a list. `fetch` sends one bounded request to it."""

    def __init__(
        self,
        url: str,
        *,
        access_key: str | None,
        tls: ssl.SSLContext | None,
        proxy: str | None,
        seconds: float,
        max_bytes: int,
    ) -> None:
        self._url = url
        self._headers = headers_for(access_key) | {"Accept": "application/pkix-crl"}
        self._tls = tls
        self._proxy = proxy
        self._seconds = seconds
        self._max_bytes = max_bytes

    async def fetch(self, validators: dict[str, str]) -> _Fetched:
        """Ask once, conditionally. Raises _FetchError."""
        try:
            async with (
                asyncio.timeout(self._seconds),
                httpx2.AsyncClient(
                    headers=self._headers,
                    verify=True if self._tls is None else self._tls,
                    trust_env=False,
                    follow_redirects=False,
                    proxy=self._proxy,
                    timeout=self._seconds,
                ) as http,
                http.stream("GET", self._url, headers=validators) as response,
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
                f"The answer is no list ({response.status_code}).",
                parse_retry_after(headers.get("retry-after"), _now()),
            )
        if headers.get("content-encoding", "identity").lower() != "identity":
            raise _FetchError("The list is compressed, which nobody asked for.")
        body = bytearray()
        async for part in response.aiter_raw():
            body += part
            if len(body) > self._max_bytes:
                raise _FetchError(f"The list has more than {self._max_bytes} bytes.")
        validators = {
            name: headers[kept]
            for name, kept in (("If-None-Match", "etag"), ("If-Modified-Since", "last-modified"))
            if kept in headers
        }
        return _Fetched(bytes(body), validators)


class _Keeper(Generic[L]):
    """The list that is kept, and when to fetch the next. Belongs to one thread at a time."""

    def __init__(self, load: Callable[[bytes], L], refresh: float) -> None:
        self.load = load
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
        """Say whether the next fetch may go out."""
        return _seconds() >= self._due

    def is_stale(self) -> bool:
        """Say whether the list that is kept counts no more."""
        return self._crl is None or self._crl.next_update < _now()

    def current(self) -> CachedCrl[L]:
        """Return what is kept. Raises RevocationUnknownError where nothing is."""
        if self._crl is None:
            raise RevocationUnknownError(
                f"There is no revocation list yet. {self._trouble or 'It is being fetched.'}"
            )
        return CachedCrl(self._crl, self._confirmed_at, self.is_stale(), self._trouble)

    def took(self, crl: L | None, fetched: _Fetched) -> None:
        """Keep a list that loaded, or the one that is there where there is no newer one."""
        now = _now()
        kept = self._crl
        if crl is not None:
            if crl.this_update > now + CLOCK_SKEW:
                raise _FetchError("The list is from the future: is the clock right?")
            if kept is not None and crl.number < kept.number:
                raise _FetchError(
                    f"The list has number {crl.number}, and number {kept.number} was there before."
                )
            self._crl, self.validators = crl, fetched.validators
        self._confirmed_at = now
        if self.is_stale():
            raise _FetchError("The authority has no list that is still in force.")
        if self._failures:
            _log.info("The revocation list is fetched again")
        self._failures, self._trouble = 0, None
        left = (self._crl.next_update - now).total_seconds() if self._crl is not None else 0.0
        self._due = _seconds() + min(self._refresh, left)

    def failed(self, error: _FetchError) -> None:
        """Keep what is there, and try again after a pause."""
        self._failures += 1
        whole = min(_LONGEST_PAUSE_SECONDS, _FIRST_PAUSE_SECONDS * 2.0 ** min(self._failures, 30))
        pause = whole * (0.5 + 0.5 * _chance())
        pause = max(pause, min(error.retry_after or 0.0, _LONGEST_RETRY_AFTER_SECONDS))
        self._due = _seconds() + pause
        if str(error) != self._trouble:
            _log.warning("The revocation list cannot be refreshed: %s", error)
        self._trouble = str(error)


class AsyncCrlCache(Generic[L]):
    """A revocation list for the tasks of one event loop."""

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
        """Remember where the list is; nothing is sent.

        `load` makes a list of DER, and raises RevocationUnknownError for one that cannot be relied
        on. The rest is as for `AsyncAuthorityClient`. Raises ConfigurationError.
        """
        self._source = _Source(
            check_url(url, plaintext=plaintext, risk="keep revoked devices from you"),
            access_key=access_key,
            tls=tls or tls_context(ca_file, None),
            proxy=proxy,
            seconds=fetch_seconds,
            max_bytes=max_bytes,
        )
        self._keeper = _Keeper(load, refresh)
        self._task: asyncio.Task[None] | None = None

    async def get(self) -> CachedCrl[L]:
        """Return the newest list that can be had; a refresh that is due goes on in the background.

        It is waited for where there is no list in force yet. Raises RevocationUnknownError where
        there never was one.
        """
        if self._task is None and self._keeper.is_due():
            self._task = asyncio.get_running_loop().create_task(self._run())
        if self._task is not None and self._keeper.is_stale():
            await asyncio.shield(self._task)
        return self._keeper.current()

    async def close(self) -> None:
        """End a refresh that is under way."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        try:
            await refresh_once(self._source, self._keeper)
        finally:
            self._task = None


class CrlCache(Generic[L]):
    """A revocation list for the threads of one process. The arguments are those of the other."""

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
        """As for `AsyncCrlCache`. Raises ConfigurationError."""
        self._cache = AsyncCrlCache(
            url,
            load=load,
            refresh=refresh,
            access_key=access_key,
            ca_file=ca_file,
            tls=tls,
            proxy=proxy,
            plaintext=plaintext,
            fetch_seconds=fetch_seconds,
            max_bytes=max_bytes,
        )
        self._fetching = threading.Lock()

    def get(self) -> CachedCrl[L]:
        """Return the newest list that can be had; the thread that finds it due refreshes it.

        Others get the list that is kept, and wait only where there is none in force. Raises
        RevocationUnknownError where there never was one. In a coroutine use `AsyncCrlCache`.
        """
        keeper = self._cache._keeper
        if keeper.is_due() and self._fetching.acquire(blocking=keeper.is_stale()):
            try:
                if keeper.is_due():  # nobody was faster
                    asyncio.run(refresh_once(self._cache._source, keeper))
            finally:
                self._fetching.release()
        return keeper.current()


async def refresh_once(source: _Source, keeper: _Keeper[L]) -> None:
    """Fetch the list once, and keep it if it is good. Raises nothing."""
    try:
        fetched = await source.fetch(keeper.validators)
        crl = None
        if fetched.body is not None:
            crl = await asyncio.to_thread(_loaded, keeper.load, fetched.body)
        elif keeper.is_empty:
            raise _FetchError("The server says that the list is known here, and it is not.")
        keeper.took(crl, fetched)
    except _FetchError as error:
        keeper.failed(error)


def _loaded(load: Callable[[bytes], L], body: bytes) -> L:
    """Load a list, in a thread. Whatever goes wrong is a _FetchError: the last good list stays."""
    try:
        return load(body)
    except RevocationUnknownError as error:
        raise _FetchError(str(error)) from None
    except Exception:
        _log.exception("The revocation list could not be loaded")
        raise _FetchError("The list could not be loaded.") from None
