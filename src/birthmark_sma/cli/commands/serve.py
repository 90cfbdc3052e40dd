"""`sma serve`: check the settings, bind the port, open the authority and run the server.

All checks run before anything is created. `web/server.py` runs the HTTP server and its workers.
"""

import os
import signal
import socket
from typing import TYPE_CHECKING, Annotated

import typer

from birthmark_sma.cli import exit_codes
from birthmark_sma.cli.commands.init import initialise_on_a_laptop
from birthmark_sma.cli.commands.serve_options import (
    LogFormat,
    LogLevel,
    SlowQueryMs,
    TlsCert,
    TlsClientCa,
    TlsKey,
    TlsSelf,
    TracesUrl,
    TrustedProxies,
)
from birthmark_sma.cli.commands.serve_tls import (
    check_tls,
    curl_options,
    find_local_certificate,
    url_for_this_machine,
)
from birthmark_sma.cli.options import (
    Abuse,
    AbuseFactor,
    AbuseLeast,
    AuditRetentionDays,
    CaKeyType,
    DatabaseUrl,
    DataDir,
    Json,
    KekCommand,
    KekFile,
    KeysPerTable,
    ManufacturerId,
    Prototype,
    PublicUrl,
    RootKeyFile,
    Sandbox,
    Tables,
    settings_from,
)
from birthmark_sma.cli.output import print_fields, print_json, print_line, print_stderr, waiting

if TYPE_CHECKING:
    from birthmark_sma.authority.authority import Authority
    from birthmark_sma.config import Settings
    from birthmark_sma.web.transport.local_certificate import LocalCertificate

_BACKLOG = 2048  # connections that wait for accept(); uvicorn's default
_SANDBOX = "fails on demand, as /sandbox says; forgets devices and validations after an hour"


def serve(
    host: Annotated[
        str | None, typer.Option(help="The address to listen on. [SMA_HOST, 127.0.0.1]")
    ] = None,
    port: Annotated[
        int | None, typer.Option(help="The port; 0 takes a free one. [PORT, 8000]")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="How many processes serve. [SMA_WORKERS, 1]")
    ] = None,
    one_core: Annotated[
        bool | None,
        typer.Option(
            "--one-core/--any-core",
            help="Keep each process on one core, which is quicker (Linux). [SMA_ONE_CORE, true]",
        ),
    ] = None,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
    kek_file: KekFile = None,
    kek_command: KekCommand = None,
    prototype: Prototype = False,
    sandbox: Sandbox = False,
    access: Annotated[
        str | None,
        typer.Option(
            help="`open` lets anyone in who reaches the address, `keys` who shows an access key."
            " [SMA_ACCESS; open on loopback, else keys]"
        ),
    ] = None,
    publish_pki: Annotated[
        bool | None,
        typer.Option(
            "--publish-pki",
            help="Let anyone read certificates and CRL without a key. [SMA_PUBLISH_PKI, false]",
        ),
    ] = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    tls_client_ca: TlsClientCa = None,
    tls_self: TlsSelf = None,
    trusted_proxies: TrustedProxies = None,
    public_url: PublicUrl = None,
    manufacturer_id: ManufacturerId = None,
    disclosure: Annotated[
        str | None,
        typer.Option(help="What a PASS tells: serial, family or none. [SMA_DISCLOSURE, serial]"),
    ] = None,
    replay: Annotated[
        str | None,
        typer.Option(
            help="A token that one caller brings again: record or refuse-same-caller."
            " [SMA_REPLAY, record]"
        ),
    ] = None,
    max_body_bytes: Annotated[
        int | None, typer.Option(help="Larger bodies are 413. [SMA_MAX_BODY_BYTES, 65536]")
    ] = None,
    pool_limit: Annotated[
        int | None, typer.Option(help="Tokens that may wait. [SMA_POOL_LIMIT, 10000]")
    ] = None,
    batch_limit: Annotated[
        int | None, typer.Option(help="Tokens that share a commit. [SMA_BATCH_LIMIT, 1000]")
    ] = None,
    request_timeout: Annotated[
        float | None,
        typer.Option(help="Seconds for a request to arrive. [SMA_REQUEST_TIMEOUT, 30]"),
    ] = None,
    answer_timeout: Annotated[
        float | None,
        typer.Option(help="Seconds to wait for the database. [SMA_ANSWER_TIMEOUT, 10]"),
    ] = None,
    rate_provision: Annotated[
        str | None,
        typer.Option(
            help='Devices a caller may provision, as "600/minute" or "none". [SMA_RATE_PROVISION]'
        ),
    ] = None,
    rate_validate: Annotated[
        str | None, typer.Option(help="Camera tokens it may send. [SMA_RATE_VALIDATE]")
    ] = None,
    rate_failures: Annotated[
        str | None,
        typer.Option(help="FAILs it may gather before it has to wait. [SMA_RATE_FAILURES]"),
    ] = None,
    rate_admin: Annotated[
        str | None, typer.Option(help="Other requests it may send. [SMA_RATE_ADMIN]")
    ] = None,
    rate_guesses: Annotated[
        str | None,
        typer.Option(help="Wrong credentials that an address may send. [SMA_RATE_GUESSES]"),
    ] = None,
    cors_origins: Annotated[
        str | None,
        typer.Option(
            help="Origins whose pages may call the API, with commas between. [SMA_CORS_ORIGINS]"
        ),
    ] = None,
    audit_retention_days: AuditRetentionDays = None,
    abuse: Abuse = None,
    abuse_factor: AbuseFactor = None,
    abuse_least: AbuseLeast = None,
    log_format: LogFormat = None,
    log_level: LogLevel = None,
    slow_query_ms: SlowQueryMs = None,
    traces_url: TracesUrl = None,
    ca_key_type: CaKeyType = None,
    tables: Tables = None,
    keys_per_table: KeysPerTable = None,
    root_key_file: RootKeyFile = None,
    as_json: Json = False,
) -> None:
    """Run the authority.

    With SQLite on a loopback address, an authority that does not exist yet is created first.
    Ctrl-C or SIGTERM stops it: what was accepted is still recorded and answered. SIGHUP reads the
    TLS certificate again.
    """
    # This must be the first statement: locals() then has the parameters and nothing else. All but
    # `as_json` are settings, or `prototype` and `sandbox`.
    flags = dict(locals())
    flags.pop("as_json")
    settings = settings_from(**flags)
    if sandbox:
        _check_sandbox(settings)
    _check_access(settings)
    check_tls(settings)
    _check_traces(settings)
    # Bind first: if the port is taken, no authority is created in vain.
    with _bind(settings) as listener:
        initialise_on_a_laptop(settings, sandbox=sandbox)
        settings, local = find_local_certificate(settings, listener)
        _run(settings, listener, local, sandbox=sandbox, as_json=as_json)


def _check_sandbox(settings: "Settings") -> None:
    """Raise ConfigurationError if the settings or the existing authority are not for a sandbox."""
    from birthmark_sma.authority.authority import check_may_be_sandbox

    check_may_be_sandbox(settings)


def _check_access(settings: "Settings") -> None:
    """Raise ConfigurationError if keys are required and none is valid. Warn if access is open.

    The warning appears only if other machines can reach the server, directly or through a proxy.
    """
    from birthmark_sma.authority.access.keys import has_good_key
    from birthmark_sma.authority.authority import is_initialised, opened_database
    from birthmark_sma.config import Access
    from birthmark_sma.errors import ConfigurationError
    from birthmark_sma.http_requests import is_loopback

    if settings.resolved_access is Access.OPEN:
        if settings.trusted_proxies or not is_loopback(settings.host):
            print_stderr(
                f"WARNING: access is open on {settings.host}: everyone who reaches this address can"
                " provision devices."
            )
        return
    first = "sma keys create NAME --scope validate"
    if not is_initialised(settings):
        first = f"sma init, then {first}"
    else:
        with opened_database(settings) as database:
            if has_good_key(database):
                return
    where, otherwise = f"On {settings.host}", "listen on 127.0.0.1"
    if is_loopback(settings.host):
        where, otherwise = "Here", "leave --access keys out"
        if settings.trusted_proxies:
            where, otherwise = "Behind a proxy", "trust no proxies"
    raise ConfigurationError(
        f"{where} callers must show access keys, and there is none in force. To make"
        f" one, type: {first}. Or {otherwise}; or say --access open, if everyone who"
        " reaches this address may provision devices and validate tokens"
    )


def _check_traces(settings: "Settings") -> None:
    """Raise ConfigurationError if traces are wanted and OpenTelemetry is not installed."""
    if settings.traces_url is not None:
        from birthmark_sma.web.server import check_tracing

        check_tracing(settings)


def _bind(settings: "Settings") -> socket.socket:
    from birthmark_sma.errors import ConfigurationError

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
            f"Port {settings.port} of {settings.host} cannot be used: {error.strerror}. Stop what"
            " listens there, or give another --port"
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
    from birthmark_sma.authority.sandbox.guards import check_kind
    from birthmark_sma.errors import ConfigurationError
    from birthmark_sma.runtime.core_dumps import forbid_core_dumps
    from birthmark_sma.runtime.cpu_affinity import pin_to_core
    from birthmark_sma.web.logs import setup as log_setup
    from birthmark_sma.web.server import run_server
    from birthmark_sma.web.transport.tls import block_sighup

    block_sighup()  # before the first thread, because threads inherit the signal mask
    forbid_core_dumps()  # before the authority decrypts its secrets
    log_setup.configure(settings)
    if settings.one_core and settings.workers == 1:
        pin_to_core(os.getpid())  # before the authority starts its threads
    with waiting("Opening the authority"):
        authority = open_authority(settings)
    try:
        check_kind(authority.sandbox, sandbox=sandbox)
    except ConfigurationError:
        authority.close()
        raise
    if settings.workers > 1 and authority.rate_limits.counts and settings.rate_store is None:
        print_stderr(
            f"Rate limits: each of the {settings.workers} processes counts by itself."
            " SMA_RATE_STORE names a Redis in which they count together."
        )
    url = _url(listener, "http" if settings.tls_cert is None else "https")

    def announce() -> None:
        if as_json:
            print_json(_facts_for_scripts(authority, url, local))
        else:
            _tell(authority, url, local)

    # The server handles these signals while it runs. Afterwards, a second signal must not stop the
    # shutdown with a traceback.
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, lambda *_: None)
    run_server(authority, listener, announce)
    # SQLite goes on writing to a removed file, so its operator must know that answers may be lost.
    if authority.database.lost:
        print_stderr(
            "Stopped. The database file was removed or replaced while it was open: earlier answers"
            " may be recorded in the removed file alone. Restore that very file, or a backup."
        )
        raise typer.Exit(exit_codes.DATABASE)
    print_stderr("Stopped. What was answered is recorded.")


def _url(listener: socket.socket, scheme: str) -> str:
    host, port = listener.getsockname()[:2]
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def _facts_for_scripts(
    authority: "Authority", url: str, local: "LocalCertificate | None"
) -> dict[str, object]:
    from birthmark_sma.cli.descriptions import fingerprint

    return {
        "url": url,
        "root_sha256_fingerprint": fingerprint(authority.root),
        "intermediate_sha256_fingerprint": fingerprint(authority.issuer.certificate),
        "tables": authority.table_sizes.tables,
        "keys_per_table": authority.table_sizes.keys_per_table,
        "database": authority.database.dialect_name,
        "sandbox": authority.sandbox,
        "tls_ca_file": None if local is None else str(local.ca_file),
    }


def _tell(authority: "Authority", url: str, local: "LocalCertificate | None") -> None:
    from birthmark_sma import __version__
    from birthmark_sma.authority.operations.statistics import count_registered
    from birthmark_sma.cli.descriptions import certificate_as_fields
    from birthmark_sma.config import Access

    settings = authority.settings
    sizes = authority.table_sizes
    print_line(
        typer.style(f"Birthmark Simulated Manufacturer Authority {__version__}\n", bold=True)
    )
    print_fields(
        [
            *([("SANDBOX", _SANDBOX)] if authority.sandbox else []),
            ("listening on", typer.style(url, fg=typer.colors.CYAN, bold=True)),
            ("documentation", f"{url}/docs"),
            *([] if local is None else [("TLS CA", str(local.ca_file))]),
            ("access", _access(settings)),
            ("data", _data(settings)),
            ("key tables", f"{sizes.tables:,} of {sizes.keys_per_table:,} keys"),
            ("devices", f"{count_registered(authority.database):,}"),
            *certificate_as_fields("root", authority.root),
            *certificate_as_fields("intermediate", authority.issuer.certificate),
        ]
    )
    print_line("\nTry next, in another terminal:")
    if authority.sandbox:
        print_line(f"  curl {curl_options(local)}{url_for_this_machine(url)}/sandbox")
        print_line("Ctrl-C stops.")
        return
    probe = "/health" if settings.resolved_access is Access.OPEN else "/health/ready"
    print_line(f"  curl {curl_options(local)}{url_for_this_machine(url)}{probe}")
    print_line("  sma demo        the whole story, with a camera and an aggregation server")
    print_line("Ctrl-C stops.")


def _access(settings: "Settings") -> str:
    from birthmark_sma.config import Access
    from birthmark_sma.http_requests import is_loopback

    if settings.resolved_access is Access.KEYS:
        return "callers show access keys: sma keys list"
    if is_loopback(settings.host):
        return "open, to this machine"
    return "open, to everyone who reaches the address"


def _data(settings: "Settings") -> str:
    if settings.uses_sqlite:
        return f"SQLite, {settings.resolved_database_url.removeprefix('sqlite:///')}"
    return "PostgreSQL, from DATABASE_URL"
