"""Send HTTP requests for the clients. One attempt returns an `HttpResponse` or a `TransportError`.

`async_client` calls `Transport.attempt`. Connections are kept and reused. The transport must never
follow redirects, read environment variables, accept a compressed response, or read more than 2 MiB.
"""

import re
import ssl
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import h11
import httpx2

from birthmark_sma import __version__
from birthmark_sma.client.options import Options
from birthmark_sma.client.outcome import Cause
from birthmark_sma.client.responses import HttpResponse, TransportError
from birthmark_sma.errors import ConfigurationError
from birthmark_sma.server_urls import check_url

BATCH_PATH = "/api/v1/validate/nuc/batch"
USER_AGENT = f"birthmark-sma-client/{__version__}"
MAX_ANSWER_BYTES = 2 * 1024 * 1024
"""Twice the size of 1,000 verdicts with the longest names."""

_IDLE_SECONDS = 4.0  # less than servers keep idle connections, so that this side closes first


class Transport:
    """The URL of the authority, and the connections to it. Belongs to one event loop."""

    def __init__(
        self,
        url: str,
        *,
        options: Options,
        access_key: str | None,
        tls: ssl.SSLContext | None,
        proxy: str | None,
        plaintext: bool,
    ) -> None:
        self._url = batch_url(url, plaintext=plaintext)
        self._options = options
        limits = httpx2.Limits(
            max_connections=options.max_in_flight, keepalive_expiry=_IDLE_SECONDS
        )
        headers = headers_for(access_key) | {"Content-Type": "application/json"}
        self._http = make_http_client(headers, tls, proxy, limits=limits)

    async def close(self) -> None:
        """Close all connections."""
        await self._http.aclose()

    async def attempt(
        self, body: bytes, request_id: str, seconds: float
    ) -> HttpResponse | TransportError:
        """Send the request once.

        `seconds` bounds each phase of the exchange; the caller must bound its total time.
        """
        options = self._options
        try:
            async with self._http.stream(
                "POST",
                self._url,
                content=body,
                headers={"X-Request-ID": request_id},
                timeout=httpx2.Timeout(
                    connect=min(options.connect_timeout, seconds),
                    read=min(options.read_timeout, seconds),
                    write=min(options.read_timeout, seconds),
                    pool=min(options.pool_timeout, seconds),
                ),
            ) as response:
                return await _read(response)
        except (httpx2.HTTPError, httpx2.StreamError, OSError) as error:
            return to_transport_error(error)


async def _read(response: httpx2.Response) -> HttpResponse | TransportError:
    """Read the body of a response whose headers have arrived."""
    # Without status 200, the status decides alone.
    if response.status_code == 200 and is_compressed(response):
        return TransportError(Cause.NOT_UNDERSTOOD, COMPRESSED)
    try:
        body = await read_body(response, MAX_ANSWER_BYTES)
    except httpx2.TimeoutException:
        return TransportError(
            Cause.TIMED_OUT, "The authority's response began, but did not end in time."
        )
    except httpx2.TransportError:
        return TransportError(
            Cause.UNREACHABLE, "The connection broke during the response.", again=True
        )
    if body is None:
        return TransportError(
            Cause.NOT_UNDERSTOOD, f"The response has more than {MAX_ANSWER_BYTES} bytes."
        )
    return HttpResponse(response.status_code, response.headers, body)


COMPRESSED = "The response is compressed, although the request does not allow that."


def is_compressed(response: httpx2.Response) -> bool:
    """Return True for a compressed response, which could decompress to gigabytes."""
    return str(response.headers.get("content-encoding", "identity")).lower() != "identity"


async def read_body(response: httpx2.Response, most: int) -> bytes | None:
    """Return the body of a response, or None if it has more than `most` bytes."""
    body = bytearray()
    # Count the bytes as they arrive, so that a huge response never fills the memory.
    async for part in response.aiter_raw():
        body += part
        if len(body) > most:
            return None
    return bytes(body)


def make_http_client(
    headers: dict[str, str], tls: ssl.SSLContext | None, proxy: str | None, **options: Any
) -> httpx2.AsyncClient:
    """Return an HTTP client that follows no redirects and reads no environment variables."""
    return httpx2.AsyncClient(
        headers=headers,
        verify=True if tls is None else tls,
        trust_env=False,
        follow_redirects=False,
        proxy=proxy,
        **options,
    )


_NO_TLS = TransportError(
    Cause.UNTRUSTED, "The server and this client support no common version or cipher of TLS."
)
_WRONG_CERTIFICATE = "The server's TLS certificate is not trusted."
# The keys are X509_V_ERR_* codes from OpenSSL's x509_vfy.h. The system's own verifier gives no
# code.
_CERTIFICATE_ERRORS = {
    9: "The server's TLS certificate is not valid yet. Check the clock of this machine.",
    10: "The server's TLS certificate has expired. Its operator must renew it.",
    **dict.fromkeys(
        (2, 18, 19, 20, 21),
        "The server's TLS certificate comes from a CA that is not trusted here. If it is the"
        " right CA, name it with ca_file.",
    ),
    **dict.fromkeys(
        (62, 64),
        "The server's TLS certificate is for another host name. Check the authority's URL.",
    ),
}
_NO_HTTP = TransportError(Cause.NOT_UNDERSTOOD, "The response is not HTTP. Check the URL.")
_CUT_SHORT = "peer unexpectedly closed connection"  # h11's message for incomplete headers
_BROKEN = TransportError(Cause.UNREACHABLE, "The connection broke before the response.", again=True)

_REFUSED_BY_PROXY = re.compile(r"(403|407)\b")

# The first row whose class matches the error decides, so subclasses come before their base classes.
_ERRORS: tuple[tuple[type[Exception], Cause, str, bool], ...] = (
    (httpx2.ConnectTimeout, Cause.UNREACHABLE, "No connection could be opened in time.", True),
    (
        httpx2.PoolTimeout,
        Cause.OVERLOADED,
        "No connection of this client became free in time.",
        True,
    ),
    (httpx2.TimeoutException, Cause.TIMED_OUT, "The authority did not answer in time.", False),
    (httpx2.ConnectError, Cause.UNREACHABLE, "No server answers at this address.", True),
    (httpx2.ProxyError, Cause.UNREACHABLE, "The proxy cannot reach the authority.", True),
)
_BROKEN_ERRORS = (httpx2.NetworkError, httpx2.RemoteProtocolError, OSError)


def to_transport_error(error: Exception) -> TransportError:
    """Return the meaning of an error before the response, and whether a retry may help."""
    for each in _causes(error):
        if isinstance(each, ssl.SSLCertVerificationError):
            code = getattr(each, "verify_code", 0)
            detail = _CERTIFICATE_ERRORS.get(code, _WRONG_CERTIFICATE)
            return TransportError(Cause.UNTRUSTED, detail)
        if type(each) is ssl.SSLError:  # not its subclasses: they mean "wait" or "peer gone"
            return _NO_TLS
        if isinstance(each, h11.RemoteProtocolError):
            return _BROKEN if str(each) == _CUT_SHORT else _NO_HTTP
    if isinstance(error, httpx2.ProxyError) and (refused := _REFUSED_BY_PROXY.match(str(error))):
        # The status of the response to CONNECT: the library has it only in the error's text.
        return TransportError(
            Cause.PROXY_REFUSED, f"The proxy does not let this client through ({refused[1]})."
        )
    for kind, cause, detail, again in _ERRORS:
        if isinstance(error, kind):
            return TransportError(cause, detail, again=again)
    violated = TransportError(Cause.NOT_UNDERSTOOD, "The request or the response violated HTTP.")
    return _BROKEN if isinstance(error, _BROKEN_ERRORS) else violated


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and its causes. The number is bounded, in case they form a cycle."""
    found: BaseException | None = error
    for _ in range(10):
        if found is None:
            return
        yield found
        found = found.__cause__ or found.__context__


def headers_for(access_key: str | None) -> dict[str, str]:
    """Return the headers of every request. Raises ConfigurationError."""
    headers = {
        "User-Agent": USER_AGENT,
        "Accept": "application/json",
        "Accept-Encoding": "identity",
    }
    if access_key is not None:
        # Any character outside visible ASCII, such as a line break, could inject another header.
        if not access_key or not all("!" <= letter <= "~" for letter in access_key):
            raise ConfigurationError(
                "The access key has characters other than visible ASCII. Copy it again."
            )
        headers["Authorization"] = f"Bearer {access_key}"
    return headers


def batch_url(url: str, *, plaintext: bool) -> str:
    """Return the URL for the validation of camera tokens. Raises ConfigurationError."""
    return (
        check_authority_url(url, plaintext=plaintext, risk="answer PASS").rstrip("/") + BATCH_PATH
    )


def check_authority_url(url: str, *, plaintext: bool | None, risk: str) -> str:
    """Return `url` if it is usable as a URL of the authority, else raise ConfigurationError.

    Without TLS, an attacker on the network could do what `risk` describes, and read the access key.
    `plaintext` allows http:// all the same; None means that the caller has no such option.
    """
    check_url(url, server="The authority", risk=risk, plaintext=plaintext)
    parts = urlsplit(url)
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ConfigurationError(
            "The authority's URL may have a host, a port and a path only. Remove the rest."
        )
    return url


def tls_context(
    ca_file: Path | None, client_certificate: Sequence[Path] | None
) -> ssl.SSLContext | None:
    """Return a TLS context that trusts `ca_file` (or the system) and sends a client certificate.

    `client_certificate` has the files of the certificate and of its key. Returns None if both
    arguments are None.

    Raises ConfigurationError if a file cannot be used.
    """
    if ca_file is None and client_certificate is None:
        return None
    try:
        context = ssl.create_default_context(cafile=None if ca_file is None else str(ca_file))
        if client_certificate is not None:
            certificate_file, key_file = client_certificate
            # For an encrypted key, OpenSSL would prompt on the terminal, which blocks a server. An
            # empty passphrase makes loading fail instead.
            context.load_cert_chain(str(certificate_file), str(key_file), password=lambda: "")
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        reason = getattr(error, "strerror", None) or getattr(error, "reason", None) or "unusable"
        raise ConfigurationError(f"The files for TLS cannot be used: {reason}.") from None
    return context
