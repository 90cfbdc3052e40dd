"""Send the requests of commands to a server: with deadlines, retries, and an error for each fault.

`remote` calls it. A request is sent again after a lost response, so every POST has an
Idempotency-Key: the server does the act once, and gives the same response again. The access key
must never be in a message.
"""

import json
import secrets
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import httpx2

from birthmark_sma import __version__
from birthmark_sma.authority.representations.json_text import as_json_text
from birthmark_sma.cli.administration.refusals import explain_refusal, is_passing
from birthmark_sma.cli.output import print_stderr
from birthmark_sma.client.outcome import Cause
from birthmark_sma.client.responses import TransportError
from birthmark_sma.client.transport import (
    check_authority_url,
    headers_for,
    tls_context,
    to_transport_error,
)
from birthmark_sma.config import Settings
from birthmark_sma.device.bounded_http import Answer, bounded_get, bounded_post, retry_after
from birthmark_sma.errors import (
    AuthorityAwayError,
    BirthmarkError,
    ConfigurationError,
    RefusedByServerError,
)
from birthmark_sma.http_requests import draw_pause
from birthmark_sma.runtime.secret_files import read_private_file

_CONNECT_SECONDS = 5.0
_ANSWER_SECONDS = 90.0  # longer than a server works on an act
_MAX_ANSWER_BYTES = 64 * 1024 * 1024
_PATIENCE_SECONDS = 10.0
"""For how long a request is sent again to a server that does not answer: it may just start."""
_LONGEST_WAIT_SECONDS = 60.0
"""The longest Retry-After that a command waits for. Rate limits are mostly by the minute."""
_TOLD_SECONDS = 5.0
"""Of a wait that is at least as long, the operator is told."""
_FIRST_PAUSE_SECONDS = 0.25
_LONGEST_PAUSE_SECONDS = 3.0

_UNKNOWN = "It is not known whether the change was made. To see it, type: sma acts list"
_NOT_SENT = (httpx2.ConnectError, httpx2.ConnectTimeout)
# These come before the server looks at the Idempotency-Key, or while the act may still be done.
_UNDECIDED = frozenset({401, 403, 429, *range(500, 600)})


@dataclass(slots=True)
class _Doubt:
    """True if an attempt to have an act done reached the server, and its result is not known."""

    exists: bool = False

    def note(self, answer: Answer | None, error: Exception | None) -> None:
        """Note the result of an attempt: a response, or the error in place of one."""
        if answer is None:
            self.exists = self.exists or not isinstance(error, _NOT_SENT)
        else:
            self.exists = self.exists or answer.status >= 500

    def describe(self, error: BirthmarkError) -> str | None:
        """Return what to add to the last error, or None if the act is certainly not done."""
        status = error.status if isinstance(error, RefusedByServerError) else 500
        return _UNKNOWN if self.exists and status in _UNDECIDED else None


class ServerConnection:
    """The server that the settings name."""

    def __init__(self, settings: Settings) -> None:
        """Check URL, access key and CAs. Raises ConfigurationError and PrivateFileError."""
        given = settings.server or ""
        risk = "change what the authority does and what you see of it"
        self.url = check_authority_url(given, plaintext=None, risk=risk).rstrip("/")
        tls = tls_context(settings.server_ca_file, None)
        self._http = httpx2.Client(
            headers=headers_for(find_access_key(settings)) | {"User-Agent": f"sma/{__version__}"},
            verify=True if tls is None else tls,
            trust_env=False,
            timeout=httpx2.Timeout(_ANSWER_SECONDS, connect=_CONNECT_SECONDS),
        )

    def close(self) -> None:
        """Close the HTTP client."""
        self._http.close()

    def get(self, path: str, query: Mapping[str, str] | None = None) -> Any:
        """Return the JSON at a path. Raises as `post`."""
        url = httpx2.URL(self.url + path, params=dict(query or {}))
        return self._request(path, lambda: self._get(url))

    def post(self, path: str, body: Mapping[str, Any], *, changes: bool = True) -> Any:
        """Have an act done, once, and return the JSON of the response.

        Without `changes` it is the preview of an act. Raises RefusedByServerError,
        AuthorityAwayError if no response arrives, and ConfigurationError if the server is no
        authority, of another version, or not trusted.
        """
        headers = {"Content-Type": "application/json", "Idempotency-Key": str(uuid.uuid4())}
        content = as_json_text(body).encode()
        doubt = _Doubt()
        try:
            return self._request(path, lambda: self._post(path, content, headers), doubt)
        except (AuthorityAwayError, RefusedByServerError) as error:
            told = doubt.describe(error) if changes else None
            if told is not None:
                error.args = (f"{error} {told}",)
            raise

    def _get(self, url: httpx2.URL) -> Answer:
        return bounded_get(self._http, url, seconds=_ANSWER_SECONDS, max_bytes=_MAX_ANSWER_BYTES)

    def _post(self, path: str, content: bytes, headers: dict[str, str]) -> Answer:
        return bounded_post(
            *(self._http, self.url + path, content, headers),
            seconds=_ANSWER_SECONDS,
            max_bytes=_MAX_ANSWER_BYTES,
        )

    def _request(self, path: str, send: Any, doubt: _Doubt | None = None) -> Any:
        """Send a request until it has an answer that a retry would not change."""
        began = time.monotonic()
        attempts = 0
        while True:
            answer, fault = _attempt(send, doubt or _Doubt())
            if answer is not None and not is_passing(answer.status):
                return self._read(path, answer)
            pause = draw_pause(
                attempts,
                first=_FIRST_PAUSE_SECONDS,
                longest=_LONGEST_PAUSE_SECONDS,
                chance=secrets.SystemRandom().random,
            )
            patience = _PATIENCE_SECONDS
            told = None if answer is None else retry_after(answer)
            if told is not None:
                pause, patience = max(told, pause), _LONGEST_WAIT_SECONDS
            again = answer is not None or (fault is not None and fault.again)
            if not again or time.monotonic() + pause > began + patience:
                self._give_up(path, answer, fault)
            if pause >= _TOLD_SECONDS:
                print_stderr(f"{self.url} asks to wait {pause:.0f} seconds.")
            time.sleep(pause)
            attempts += 1

    def _read(self, path: str, answer: Answer) -> Any:
        """Return the JSON of a response. Raises the error of a refusal."""
        if answer.status != httpx2.codes.OK:
            raise explain_refusal(self.url, path, answer)
        try:
            return json.loads(answer.content)
        except (ValueError, RecursionError):
            raise ConfigurationError(
                f"The response of {self.url} is no JSON: this is no Simulated Manufacturer"
                " Authority. Check the URL"
            ) from None

    def _give_up(self, path: str, answer: Answer | None, fault: TransportError | None) -> NoReturn:
        if answer is not None:
            raise explain_refusal(self.url, path, answer)
        assert fault is not None  # noqa: S101
        detail = fault.detail.replace("ca_file", "--server-ca-file")
        if fault.cause in {Cause.UNTRUSTED, Cause.NOT_UNDERSTOOD}:
            raise ConfigurationError(f"{self.url}: {detail}")
        raise AuthorityAwayError(f"{self.url}: {detail}")


def find_access_key(settings: Settings) -> str | None:
    """Return the access key for the server, or None if the settings name none.

    Raises ConfigurationError if they name two, and PrivateFileError if other users can read the
    file.
    """
    key, file = settings.server_key, settings.server_key_file
    if file is None:
        return None if key is None else key.get_secret_value()
    if key is not None:
        raise ConfigurationError("SMA_SERVER_KEY is set, and a file with a key is named. Unset one")
    try:
        return read_private_file(file).decode("ascii").strip()
    except UnicodeDecodeError:
        raise ConfigurationError(f"{file} holds no access key") from None


def _attempt(send: Any, doubt: _Doubt) -> tuple[Answer | None, TransportError | None]:
    try:
        answer: Answer = send()
    except (httpx2.HTTPError, httpx2.StreamError, OSError) as error:
        doubt.note(None, error)
        return None, to_transport_error(error)
    doubt.note(answer, None)
    return answer, None
