"""The course of a drill: copy, serve, provision, take pictures, act, renew, end.

`command` calls `rehearse`. Everything happens on the copy: the source is only read.
"""

import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from birthmark_sma.authority.authority import opened_database
from birthmark_sma.authority.ca import store as ca_store
from birthmark_sma.authority.ca.store import CaRole
from birthmark_sma.authority.key_tables import store as key_table_store
from birthmark_sma.authority.key_tables.holders import Exposure, find_exposure
from birthmark_sma.authority.operations.backup import Bar
from birthmark_sma.authority.renewal.orders import RenewalOrder
from birthmark_sma.cli.drill.causes import Cause, Incident, open_incident
from birthmark_sma.cli.drill.copied_authority import copied_authority, describe_copy
from birthmark_sma.cli.drill.devices import (
    Answers,
    DrillDevice,
    provision_devices,
    renew_all,
)
from birthmark_sma.cli.drill.load import Load, Sample, Thief
from birthmark_sma.cli.drill.publication import Fetched, Publication
from birthmark_sma.cli.server_process import running_server
from birthmark_sma.config import Settings
from birthmark_sma.errors import NotInitialisedError
from birthmark_sma.simulation.fleet import memory_directory
from birthmark_sma.simulation.run import new_serial_prefix
from birthmark_sma.simulation.target import Site
from birthmark_sma.storage.engine import Database

QUIET_SECONDS = 4.0
"""The time before the act, and after it until the recovery, in which pictures are taken."""
_LATE_SECONDS = 60.0
"""The drill waits so long, and half of the order's time, for devices after the order's time."""


@dataclass(frozen=True, slots=True)
class DrillOptions:
    """The options of a drill. `within` is the time of the renewal order in seconds.

    `rate` is the number of pictures a second, `offline` the share of devices that sleep until the
    order's time is over.
    """

    cause: Cause
    subject: str | None
    devices: int
    within: float
    rate: float
    offline: float
    keep: Path | None


@dataclass(slots=True)
class Course:
    """What happened in a drill, as the report needs it. Times are Unix times of this machine."""

    options: DrillOptions
    subject: str
    devices: list[DrillDevice]
    concerned: list[DrillDevice]
    stolen: DrillDevice | None
    has_victim: bool = False
    acted_on: int = 0
    decided_at: float = 0.0
    committed_at: float = 0.0
    recovering_at: float = 0.0
    ordered_at: float = 0.0
    ended_at: float = 0.0
    lost_issuer: bytes | None = field(default=None, repr=False)
    orders: list[RenewalOrder] = field(default_factory=list)
    windows_at: list[float] = field(default_factory=list)
    """The middles of the windows of the concerned devices."""
    list_name: str = ""
    list_before: Fetched | None = None
    list_after: Fetched | None = None
    ocsp: Fetched | None = None
    answers: Mapping[int, int] = field(default_factory=dict)
    samples: list[Sample] = field(default_factory=list)
    exposure: Exposure | None = None
    is_stopped: bool = False
    kept: dict[str, str] | None = None
    """The place of the copy, if it stays."""


def rehearse(settings: Settings, options: DrillOptions, bar: Bar, waiting: "Waiting") -> Course:
    """Carry out a drill on a copy of the authority, and return its course.

    Ctrl-C ends it early, with a report about what happened until then. Raises NotInitialisedError,
    ConfigurationError, and the errors of the copy, of the acts and of `start_camera`.
    """
    with (
        copied_authority(settings, bar, options.keep) as copy,
        memory_directory() as cameras,
        opened_database(copy) as database,
    ):
        incident = open_incident(options.cause, options.subject, database, copy)
        planned = incident.plan(options.devices, new_serial_prefix())
        with waiting("Checking that the act is possible"):
            incident.prepare()
        answers = Answers()
        with ExitStack() as stack:
            server = running_server(copy.data_dir.parent, _server_settings(copy))
            site = Site(stack.enter_context(server)["url"])
            client = stack.enter_context(site.http_client())
            client.event_hooks = {"response": [answers.count]}
            with bar("Provisioning", "steps") as progress:
                devices = provision_devices(
                    site.url,
                    planned,
                    cameras,
                    keys_per_table=_keys_per_table(database),
                    client=client,
                    progress=progress,
                )
            for each in devices:
                stack.callback(each.played.close)
            incident.meet(devices)
            course = _play(options, incident, devices, site, bar)
            course.answers = answers.by_status
            course.kept = None if options.keep is None else describe_copy(copy)
            return course


Waiting = Callable[[str], AbstractContextManager[None]]


def _play(
    options: DrillOptions,
    incident: Incident,
    devices: list[DrillDevice],
    site: Site,
    bar: Bar,
) -> Course:
    course = Course(options, incident.subject, devices, incident.concerned, incident.stolen)
    for each in incident.concerned[: round(options.offline * len(incident.concerned))]:
        each.is_offline = True
    with incident.database.read() as connection:
        root = ca_store.find_active(connection, CaRole.ROOT)
        shown = incident.stolen or devices[0]
        course.exposure = find_exposure(
            connection, sorted(shown.tables), without=shown.new.device_serial
        )
    assert root is not None  # noqa: S101  an authority has one
    thief = None if incident.stolen is None else Thief(incident.stolen, incident.concerned)
    course.has_victim = thief is not None and thief.has_victim
    load = Load(
        site.url,
        root.name,
        root.load(),
        [each for each in devices if each is not incident.stolen],
        options.rate,
        thief,
    )
    with _stopped_by_signal() as stop, site.http_client() as client:
        load.start()
        try:
            _act(course, incident, Publication(site.url, client), stop)
            _renew(course, incident, bar, stop)
        finally:
            load.stop()
    course.samples = load.samples
    course.is_stopped = stop.is_set()
    return course


def _act(
    course: Course, incident: Incident, publication: Publication, stop: threading.Event
) -> None:
    """Let pictures pass for a while, then do the act, and measure what verifiers see of it."""
    course.list_name, serial = incident.find_listed()
    course.list_before = publication.fetch_list(course.list_name)
    one = incident.stolen or incident.concerned[0]
    certificate = one.played.camera.certificate
    issuer = x509.load_pem_x509_certificate(one.played.identity.certificate_chain[0].encode())
    if serial == issuer.serial_number:
        course.lost_issuer = issuer.public_bytes(Encoding.DER)
    stop.wait(QUIET_SECONDS)
    course.decided_at = time.time()
    course.acted_on = incident.revoke()
    course.committed_at = time.time()
    if course.lost_issuer is None:
        course.ocsp = publication.await_revoked(certificate, issuer)
    course.list_after = publication.await_listed(course.list_name, serial)
    stop.wait(QUIET_SECONDS)


def _renew(course: Course, incident: Incident, bar: Bar, stop: threading.Event) -> None:
    """Order the renewals and let the devices renew, then end what the order leaves open."""
    within = course.options.within
    course.recovering_at = time.time()
    course.orders = incident.recover(timedelta(seconds=within))
    course.ordered_at = time.time()
    course.windows_at = [
        min(
            (window.start + (window.end - window.start) / 2).timestamp()
            for window in (order.time.share(each.certificate_serial) for order in course.orders)
        )
        for each in course.concerned
    ]
    with bar("Renewing", "steps") as progress:
        renew_all(
            course.concerned,
            within,
            limit=1.5 * within + _LATE_SECONDS,
            progress=progress,
            stop=stop,
        )
    incident.end()
    course.ended_at = time.time()
    stop.wait(QUIET_SECONDS)


@contextmanager
def _stopped_by_signal() -> Iterator[threading.Event]:
    """Yield an event that the first Ctrl-C sets. A second one raises KeyboardInterrupt."""
    stop = threading.Event()

    def halt(_number: int, _frame: Any) -> None:
        stop.set()
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, halt)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)


def _keys_per_table(database: Database) -> int:
    with database.read() as connection:
        sizes = key_table_store.find_sizes(connection)
    if sizes is None:
        raise NotInitialisedError
    return sizes.keys_per_table


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port: int = listening.getsockname()[1]
        return port


def _server_settings(copy: Settings) -> dict[str, str]:
    """Return the environment of the server: the copy's database and secrets, and no limits.

    It has a public URL, so that the certificates name the lists of their issuers.
    """
    port = _free_port()
    given = {
        "PORT": str(port),
        "SMA_PUBLIC_URL": f"http://127.0.0.1:{port}",
        "SMA_DATA_DIR": str(copy.data_dir.absolute()),
        "SMA_ACCESS": "open",
        "SMA_WORKERS": "1",
        "SMA_LOG_LEVEL": "warning",
        "SMA_KEK_FILE": None if copy.kek_file is None else str(copy.kek_file.absolute()),
        "SMA_KEK_COMMAND": copy.kek_command,
    }
    secret = {
        "DATABASE_URL": copy.database_url,
        "CA_PASSWORD": copy.ca_password,
    }
    return {
        **{name: value for name, value in given.items() if value is not None},
        **{name: value.get_secret_value() for name, value in secret.items() if value is not None},
    }
