"""Where a simulation takes place: the authority, its doors, and how a theft is reported."""

import asyncio
import ssl
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx2

from birthmark_sma.client import (
    AsyncAuthorityClient,
    Cause,
    Fail,
    Indeterminate,
    Options,
    Pass,
)
from birthmark_sma.client.transport import tls_context, to_transport_error
from birthmark_sma.device import Enrolment
from birthmark_sma.errors import ConfigurationError
from birthmark_sma.protocol.camera_token import CameraToken
from birthmark_sma.simulation.expected_outcomes import Environment

_PROVISION_SECONDS = 30.0
_ALIVE_PATH = "/health/live"
_ALIVE_SECONDS = 5.0
_REPORT_SECONDS = 60.0
_MAX_TOLD = 300


@dataclass(frozen=True, slots=True)
class Site:
    """An authority, and what opens its doors.

    `validate_keys` has a key for each aggregation server, or none where none are asked for.
    `report_command` is run with a device serial behind it, to have that device suspended.
    """

    url: str
    enrolment_key: str | None = field(default=None, repr=False)
    validate_keys: tuple[str, ...] = field(default=(), repr=False)
    ca_file: Path | None = None
    root_fingerprint: str | None = None
    keys_per_table: int | None = None
    report_command: tuple[str, ...] = field(default=(), repr=False)

    def enrolment(self, device_serial: str, family: str) -> Enrolment:
        """Return what a camera is provisioned with. Raises ConfigurationError."""
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
        """Return an HTTP client that trusts what the site does, for all but validation."""
        context: ssl.SSLContext | None = tls_context(self.ca_file, None)
        return httpx2.Client(
            verify=True if context is None else context,
            timeout=70,
            trust_env=False,
            # A connection for each request, as a camera's attempts want it: `start_camera`.
            limits=httpx2.Limits(max_keepalive_connections=0),
        )

    def check_trust(self, client: httpx2.Client) -> None:
        """Raise ConfigurationError where whoever answers there is not to be trusted.

        That does not change while one waits; all else a camera bears with patience.
        """
        try:
            client.get(f"{self.url.rstrip('/')}{_ALIVE_PATH}", timeout=_ALIVE_SECONDS)
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            if (
                isinstance(error, httpx2.HTTPError)
                and to_transport_error(error).cause is Cause.UNTRUSTED
            ):
                raise ConfigurationError(
                    "The authority's TLS certificate is not one that is trusted here. Name the CA"
                    " that it comes from with --ca-file; sma serve --tls-self prints where its"
                    " own is."
                ) from None

    def aggregator_client(self, number: int) -> AsyncAuthorityClient:
        """Return the client of an aggregation server. Raises ConfigurationError."""
        key = self.validate_keys[number] if self.validate_keys else None
        # One request at a time: what comes meanwhile goes out together, which is what costs least.
        options = Options(max_waiting=100_000, max_in_flight=1, circuit_rest=1.0)
        return AsyncAuthorityClient(self.url, access_key=key, ca_file=self.ca_file, options=options)

    async def report(self, device_serial: str) -> str | None:
        """Have a device suspended; return None once that is done, else what went wrong."""
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
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()
            if isinstance(error, TimeoutError):
                return "The command did not end in time."
            raise
        if process.returncode == 0:
            return None
        said = told.decode(errors="replace").strip()[-_MAX_TOLD:]
        return f"The command ended with {process.returncode}{f': {said}' if said else '.'}"


async def probe(
    clients: Sequence[AsyncAuthorityClient], token: CameraToken, *, reports: bool
) -> Environment:
    """Find out what was agreed on, with one genuine camera token. `reports`: to the authority.

    Raises ConfigurationError where the authority does not answer as it must for any run to make
    sense: a wrong key, another number of keys in a table, no verdict when it is asked again.
    """
    disclosed = True
    for number, client in enumerate(clients, start=1):
        match await client.validate(token):
            case Pass(device_serial=serial):
                disclosed = disclosed and serial is not None
            case Fail():
                raise ConfigurationError(
                    "A genuine camera token got FAIL. Has each key table as many keys as"
                    " --keys-per-table says (100 in a prototype)?"
                )
            case Indeterminate(cause=cause, detail=detail):
                if number > 1 and cause is Cause.ALREADY_SUBMITTED:
                    raise ConfigurationError(
                        "This authority answers each caller once, and takes the aggregation servers"
                        " for one: give each a key of its own."
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
                "A genuine camera token got PASS first and then FAIL. Does somebody suspend devices"
                " at this very moment?"
            )
        case Indeterminate(cause=cause, detail=detail):
            raise ConfigurationError(
                f"Asked for a second time, the authority gives no verdict ({cause}): {detail}"
            )
    return Environment(
        discloses_serials=disclosed,
        answers_repeats=answers_repeats,
        reports_to_authority=reports,
    )
