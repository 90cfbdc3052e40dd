"""The authority that a simulation uses: its URL, access keys, trust, and the theft report command.

`run` and `hosting` create all HTTP clients from a `Site`.
"""

import asyncio
import ssl
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx2

from birthmark_sma.client import AsyncAuthorityClient, Cause, Fail, Indeterminate, Options, Pass
from birthmark_sma.client.transport import tls_context, to_transport_error
from birthmark_sma.device import Enrolment
from birthmark_sma.errors import AuthorityAwayError, ConfigurationError
from birthmark_sma.protocol.camera_token import CameraToken
from birthmark_sma.simulation.expected_outcomes import Environment

_PROVISION_SECONDS = 30.0
_ALIVE_PATH = "/health/live"
_ALIVE_SECONDS = 5.0
_REPORT_SECONDS = 60.0
_MAX_TOLD = 300  # last characters of the command's stderr in an error message


@dataclass(frozen=True, slots=True)
class Site:
    """An authority and the credentials for it.

    `validate_keys` has an access key for each aggregation server, or is empty if access is open.
    `report_command` suspends a device; the device serial is appended as its last argument.
    """

    url: str
    enrolment_key: str | None = field(default=None, repr=False)
    validate_keys: tuple[str, ...] = field(default=(), repr=False)
    ca_file: Path | None = None
    root_fingerprint: str | None = None
    keys_per_table: int | None = None
    report_command: tuple[str, ...] = field(default=(), repr=False)

    def enrolment(self, device_serial: str, family: str) -> Enrolment:
        """Return the enrolment data of a camera. Raises ConfigurationError."""
        return Enrolment(
            self.url,
            device_serial,
            family,
            enrolment_key=self.enrolment_key,
            app_version="simulation",
            keys_per_table=self.keys_per_table,
            root_fingerprint=self.root_fingerprint,
            patience=_PROVISION_SECONDS,
        )

    def http_client(self) -> httpx2.Client:
        """Return an HTTP client that trusts the site's CA, for all requests except validation."""
        context: ssl.SSLContext | None = tls_context(self.ca_file, None)
        return httpx2.Client(
            verify=True if context is None else context,
            timeout=70,
            trust_env=False,
            # No open connections: only then is the time of a whole attempt of `start_camera`
            # bounded.
            limits=httpx2.Limits(max_keepalive_connections=0),
        )

    def check_connection(self, client: httpx2.Client) -> None:
        """Raise an error if no server is there, or if its TLS certificate is not trusted.

        Raises AuthorityAwayError or ConfigurationError. All other errors are ignored here, because
        a camera retries after them.
        """
        try:
            client.get(f"{self.url.rstrip('/')}{_ALIVE_PATH}", timeout=_ALIVE_SECONDS)
        except httpx2.InvalidURL:
            return
        except httpx2.HTTPError as error:
            if to_transport_error(error).cause is Cause.UNTRUSTED:
                raise ConfigurationError(
                    "The authority's TLS certificate is not trusted. Name its CA with"
                    " --ca-file; sma serve --tls-self prints the path of its own CA."
                ) from None
            if isinstance(error, httpx2.ConnectError):
                raise AuthorityAwayError(
                    f"No authority answers at {self.url}. Start it, or correct the URL"
                ) from None

    def aggregator_client(self, number: int) -> AsyncAuthorityClient:
        """Return the client of an aggregation server. Raises ConfigurationError."""
        key = self.validate_keys[number] if self.validate_keys else None
        # One request at a time: tokens that arrive in the meantime form one batch, which costs
        # least.
        options = Options(max_waiting=100_000, max_in_flight=1, circuit_rest=1.0)
        return AsyncAuthorityClient(self.url, access_key=key, ca_file=self.ca_file, options=options)

    async def report(self, device_serial: str) -> str | None:
        """Run the command that suspends a device. Return None on success, else an error message.

        The command has 60 seconds. It is killed after that, or if this task is cancelled.
        """
        try:
            process = await asyncio.create_subprocess_exec(
                *self.report_command,
                device_serial,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
            )
        except OSError as error:
            return f"The command cannot be run: {error.strerror}."
        try:
            async with asyncio.timeout(_REPORT_SECONDS):
                _, told = await process.communicate()
        except BaseException as error:
            # Also on cancellation: the command must not outlive this call.
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()
            if isinstance(error, TimeoutError):
                return f"The command did not end within {_REPORT_SECONDS:g} s."
            raise
        if process.returncode == 0:
            return None
        said = told.decode(errors="replace").strip()[-_MAX_TOLD:]
        return f"The command ended with {process.returncode}{f': {said}' if said else '.'}"


async def probe(
    clients: Sequence[AsyncAuthorityClient], token: CameraToken, *, reports: bool
) -> Environment:
    """Return the authority's policies, which it finds with one genuine camera token.

    It validates the token once with each client, then again with the first one. `reports` is true
    if thefts are reported to the authority. Raises ConfigurationError if no run can succeed: the
    access key is wrong, a key table has a different number of keys, two clients count as one
    caller, or a repeated validation fails.
    """
    disclosed = True
    for number, client in enumerate(clients, start=1):
        match await client.validate(token):
            case Pass(device_serial=serial):
                disclosed = disclosed and serial is not None
            case Fail():
                raise ConfigurationError(
                    "A genuine camera token got FAIL. Check --keys-per-table: it must be the"
                    " number of keys in each key table (100 in a prototype)."
                )
            case Indeterminate(cause=cause, detail=detail):
                # The token is new for each caller, so two clients must be one caller here.
                if number > 1 and cause is Cause.ALREADY_SUBMITTED:
                    raise ConfigurationError(
                        "This authority answers each caller once, and all aggregation servers"
                        " use the same access key. Give each one its own key."
                    )
                raise ConfigurationError(
                    f"Aggregation server {number} gets no verdict ({cause}): {detail}"
                )
    match await clients[0].validate(token):
        case Pass():
            answers_repeats = True
        case Indeterminate(cause=Cause.ALREADY_SUBMITTED):
            answers_repeats = False
        case Fail():
            raise ConfigurationError(
                "A genuine camera token got PASS first and then FAIL. Check whether devices"
                " are being suspended now."
            )
        case Indeterminate(cause=cause, detail=detail):
            raise ConfigurationError(
                f"The authority gave no verdict for a repeated token ({cause}): {detail}"
            )
    return Environment(
        discloses_serials=disclosed, answers_repeats=answers_repeats, reports_to_authority=reports
    )
