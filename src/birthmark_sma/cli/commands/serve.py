"""`sma serve`: check the settings, bind the port, open the authority and run the server.

All checks run before anything is created. `web/server.py` runs the HTTP server and its workers.
"""

import os
import secrets
import signal
import socket
from collections.abc import Callable
from dataclasses import asdict
from shlex import quote
from typing import TYPE_CHECKING

import typer

from birthmark_sma.cli import exit_codes
from birthmark_sma.cli.commands.init import initialise_on_a_laptop
from birthmark_sma.cli.commands.serve_tls import check_tls, curl_command, find_local_certificate
from birthmark_sma.cli.opening import find_platform, require_sqlite_file, wait_for_database
from birthmark_sma.cli.options import Json
from birthmark_sma.cli.output import (
    print_fields,
    print_json,
    print_line,
    print_stderr,
    program_name,
    waiting,
)
from birthmark_sma.errors import BirthmarkError, ConfigurationError
from birthmark_sma.http_requests import is_loopback

if TYPE_CHECKING:
    from birthmark_sma.authority.authority import Authority
    from birthmark_sma.config import Settings
    from birthmark_sma.runtime.processes.process_count import ProcessCount
    from birthmark_sma.web.transport.local_certificate import LocalCertificate

_BACKLOG = 4096  # connections that wait for accept(); Linux allows no more by default
_SANDBOX = "fails on demand (see /sandbox); deletes devices and validations after an hour"


def serve(settings: "Settings", sandbox: bool, as_json: Json = False) -> None:
    """Run the authority's server.

    With SQLite on a loopback address, the command first creates an authority if there is none.
    Ctrl-C or SIGTERM stops the server after it has answered the accepted requests. SIGHUP makes it
    read the TLS certificate again.
    """
    from birthmark_sma.authority.initialisation import check_may_be_sandbox
    from birthmark_sma.web.server import check_tracing

    wait_for_database(settings)
    if sandbox:
        check_may_be_sandbox(settings)
    _check_access(settings)
    check_tls(settings)
    check_tracing(settings)
    # Bind first: if the port is taken, no authority is created in vain.
    with _bind(settings) as listener:
        initialise_on_a_laptop(settings, sandbox=sandbox)
        settings, local = find_local_certificate(settings, listener)
        _run(settings, listener, local, sandbox=sandbox, as_json=as_json)


def _check_access(settings: "Settings") -> None:
    """Raise ConfigurationError if keys are required and none is valid. Warn if access is open.

    The warning appears only if other machines can reach the server, directly or through a proxy.
    """
    from birthmark_sma.authority.access.keys import has_good_key
    from birthmark_sma.authority.authority import opened_database
    from birthmark_sma.authority.initialisation import is_initialised
    from birthmark_sma.config import Access

    if settings.resolved_access is Access.OPEN:
        if settings.trusted_proxies or not is_loopback(settings.host):
            print_stderr(
                f"WARNING: access is open on {settings.host}. Every caller that reaches this"
                " address can provision devices."
            )
        return
    first = "sma keys create NAME --scope validate"
    if not is_initialised(settings):
        if find_platform() is not None:
            require_sqlite_file(settings)
        first = f"sma init, then {first}"
    else:
        with opened_database(settings) as database:
            if has_good_key(database):
                return
    where, otherwise = f"On {settings.host}", "listen on 127.0.0.1"
    if is_loopback(settings.host):
        where, otherwise = "Here", "leave out --access keys"
        if settings.trusted_proxies:
            where, otherwise = "Behind a proxy", "trust no proxies"
    raise ConfigurationError(
        f"{where}, callers need access keys, and no key is valid. To create one, type: {first}. Or"
        f" {otherwise}. Or add --access open, if every caller that reaches this address may"
        " provision devices and validate tokens."
    )


def _bind(settings: "Settings") -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        # A restart can bind at once, although old connections are still in TIME_WAIT.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((settings.host, settings.port))
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise ConfigurationError(
            f"Port {settings.port} of {settings.host} cannot be used: {error.strerror}. Stop the"
            " other process, or choose another port with --port."
        ) from None
    listener.set_inheritable(True)  # worker processes accept connections on the same socket
    return listener


def _run(
    settings: "Settings",
    listener: socket.socket,
    local: "LocalCertificate | None",
    *,
    sandbox: bool,
    as_json: bool,
) -> None:
    from birthmark_sma.authority.authority import open_authority
    from birthmark_sma.authority.initialisation import check_is_known, remember_authority
    from birthmark_sma.authority.operations.statistics import count_registered
    from birthmark_sma.authority.sandbox.guards import check_kind
    from birthmark_sma.runtime.core_dumps import forbid_core_dumps
    from birthmark_sma.runtime.cpu_affinity import pin_to_core
    from birthmark_sma.web.logs import setup as log_setup
    from birthmark_sma.web.server import run_server
    from birthmark_sma.web.transport.tls import block_sighup

    processes = _count_processes(settings, sandbox=sandbox)
    settings = settings.model_copy(update={"workers": processes.number})
    block_sighup()  # before the first thread, because threads inherit the signal mask
    forbid_core_dumps()  # before the authority decrypts its secrets
    log_setup.configure(settings)
    if settings.one_core and settings.processes == 1:
        # Before the authority starts its threads. In a container each server is process 1, so the
        # core is random: they would all share one core of the machine.
        pin_to_core(secrets.randbelow(os.cpu_count() or 1))
    with waiting("Opening the authority"):
        authority = open_authority(settings)
    try:
        check_kind(authority.sandbox, sandbox=sandbox)
        check_is_known(settings, authority.database)
        remember_authority(settings, authority.database)
        # Counted now: the announcement must not fail if the database goes away before it.
        devices = count_registered(authority.database)
    except BirthmarkError:
        authority.close()
        raise
    url = _url(listener, "http" if settings.tls_cert is None else "https")
    send_early_signals = _note_stop_signals()

    def announce() -> None:
        _print_facts(authority, url, local, processes, devices, as_json=as_json)
        send_early_signals()

    if not run_server(authority, listener, announce):
        print_stderr("Stopped: a process could not start. Its log above has the reason.")
        raise typer.Exit(exit_codes.FAILED)
    # SQLite goes on writing to a removed file, so its operator must know that answers may be lost.
    if authority.database.lost:
        print_stderr(
            "Stopped. The database file was removed or replaced while it was open. Earlier answers"
            " may be recorded only in the removed file. Restore that file, or a backup."
        )
        raise typer.Exit(exit_codes.DATABASE)
    print_stderr("Stopped. All answers are recorded.")


def _note_stop_signals() -> Callable[[], None]:
    """Note stop signals from now on; return a function that sends the first one again.

    The server handles these signals while it runs, from shortly before it accepts connections. One
    that comes earlier must not be lost. Afterwards, a second signal must not stop the shutdown with
    a traceback.
    """
    noted: list[int] = []
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, lambda number, _: noted.append(number))

    def send_again() -> None:
        if noted:
            signal.raise_signal(noted[0])

    return send_again


def _url(listener: socket.socket, scheme: str) -> str:
    host, port = listener.getsockname()[:2]
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def _count_processes(settings: "Settings", *, sandbox: bool) -> "ProcessCount":
    """Return the number of processes to run, and the reason for it."""
    from birthmark_sma.authority.authority import opened_database
    from birthmark_sma.errors import DatabaseUnavailableError
    from birthmark_sma.runtime.processes.machine_resources import available_memory, usable_cores
    from birthmark_sma.runtime.processes.process_count import ProcessCount, Resources, decide
    from birthmark_sma.storage.health import count_free_connections

    if settings.workers is not None:
        return ProcessCount(settings.workers, "set by the operator")
    if sandbox:
        return ProcessCount(1, "a sandbox")
    if settings.sqlite_file:
        return ProcessCount(1, "SQLite has one writer")
    with opened_database(settings) as database:
        try:
            with database.read() as connection:
                connections = count_free_connections(connection)
        except DatabaseUnavailableError:  # another kind of database has other system tables
            connections = None
    return decide(Resources(usable_cores(), available_memory(), connections))


def _print_facts(
    authority: "Authority",
    url: str,
    local: "LocalCertificate | None",
    processes: "ProcessCount",
    devices: int,
    *,
    as_json: bool,
) -> None:
    from birthmark_sma import __version__
    from birthmark_sma.authority.representations.certificates import fingerprint
    from birthmark_sma.cli.descriptions import certificate_as_fields

    if as_json:
        print_json(
            {
                "url": url,
                "root_sha256_fingerprint": fingerprint(authority.root),
                "intermediate_sha256_fingerprint": fingerprint(authority.issuer.certificate),
                **asdict(authority.table_sizes),
                "database": authority.database.dialect_name,
                "processes": processes.number,
                "sandbox": authority.sandbox,
                "tls_ca_file": None if local is None else str(local.ca_file),
            }
        )
        return
    settings, sizes = authority.settings, authority.table_sizes
    file = settings.sqlite_file
    title = f"Birthmark Simulated Manufacturer Authority {__version__}\n"
    print_line(typer.style(title, bold=True))
    print_fields(
        [
            *([("SANDBOX", _SANDBOX)] if authority.sandbox else []),
            ("listening on", typer.style(url, fg=typer.colors.CYAN, bold=True)),
            ("dashboard", f"{url}/dashboard"),
            ("documentation", f"{url}/docs"),
            *([] if local is None else [("TLS CA", str(local.ca_file))]),
            ("access", _access(settings)),
            ("data", f"SQLite, {file}" if file else "PostgreSQL, from DATABASE_URL"),
            ("processes", str(processes)),
            ("key tables", f"{sizes.tables:,} of {sizes.keys_per_table:,} keys"),
            ("devices", f"{devices:,}"),
            *certificate_as_fields("root", authority.root),
            *certificate_as_fields("intermediate", authority.issuer.certificate),
        ]
    )
    print_line("\nTry next, in another terminal:")
    path = "/sandbox" if authority.sandbox else "/health"
    steps = [] if authority.sandbox else next_steps(settings)
    for line in (curl_command(url + path, local), *steps):
        print_line(f"  {line}")
    print_line("To stop: Ctrl-C.")


def next_steps(settings: "Settings") -> list[str]:
    """Return commands for this authority, as another terminal in the same directory takes them."""
    sma, place = program_name(), settings.data_dir
    usual = place == type(settings).model_fields["data_dir"].default
    provision = f"{sma} provision camera-1" + ("" if usual else f" --data-dir {quote(str(place))}")
    steps = {
        provision: "provisions a device and writes its files",
        f"{sma} demo": "shows a camera, a picture and the verdicts",
    }
    return [f"{step.ljust(len(provision))}   {what}" for step, what in steps.items()]


def _access(settings: "Settings") -> str:
    from birthmark_sma.config import Access

    if settings.resolved_access is Access.KEYS:
        return "with access keys: sma keys list"
    here = is_loopback(settings.host)
    return "open to this machine" if here else "open to every caller that reaches the address"
