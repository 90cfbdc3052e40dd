"""The table of settings: type, default, bounds, description and flags of each, declared once.

`loading.py` creates the frozen `Settings`; all other modules only read it. The variables of hosting
platforms (`DATABASE_URL`, `CA_PASSWORD`, `PORT`) keep their names. All others have the field's name
in capitals with the prefix `SMA_`. `values.py` checks values that a type does not describe.
"""

import ipaddress
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator

from birthmark_sma.config.choices import (
    AbuseMode,
    Access,
    Disclosure,
    LogFormat,
    LogLevel,
    ReplayPolicy,
)
from birthmark_sma.config.setting import Setting
from birthmark_sma.config.values import (
    add_traces_path,
    check_origins,
    check_passphrase,
    check_rates,
    check_redis_url,
    check_url,
    parse_networks,
    split_list,
)
from birthmark_sma.http_requests import is_loopback
from birthmark_sma.pki.keys.ca_keys import CaKeyType
from birthmark_sma.protocol.key_table import (
    MAX_WIRE_INTEGER,
    PROTOTYPE_SIZES,
    STANDARD_SIZES,
    TABLES_PER_DEVICE,
    TableSizes,
)

# A settings file with one of these must not be readable by other users.
SECRET_FIELDS = {"ca_password", "database_url", "rate_store", "server_key"}
_PROCESSES = "1 with SQLite, else one a core, if memory and PostgreSQL's connections allow"

# The commands that have a flag for a setting, as they are typed after `sma`.
_SERVE = ("serve",)
_SIZES = (*_SERVE, "init")
_CA_CHANGES = ("ca rotate", "ca compromised", "ca roll-root")
_ROOT_KEY = (
    *_SIZES,
    *("doctor", "backup", "restore", "ca publish-crl", "secrets rotate", "secrets check", "drill"),
    "move",
    *_CA_CHANGES,
)
_KEK = (
    *_SIZES,
    *("doctor", "restore", "provision", "provision-batch", "validate", "tables populate"),
    *("tables rotate", "ca export", "ca publish-crl", "secrets rotate", "secrets check"),
    *("history prune", "drill", "move", *_CA_CHANGES),
)
_DATABASE = (
    *_KEK,
    *("migrate", "top", "backup", "devices list", "devices show", "devices suspend"),
    *("devices reinstate", "devices revoke", "devices retire", "devices re-enrol"),
    *("devices flagged", "devices reviewed"),
    *("renewals order", "renewals list", "renewals cancel"),
    *("tables show", "tables list", "tables stragglers", "tables end", "tables exposure"),
    *("ca show", "ca list", "history partitions"),
    *("audit verify", "audit export", "audit checkpoints", "audit public-key"),
    *("validations list", "validations show"),
    *("keys create", "keys list", "keys revoke", "keys rotate"),
    *("acts list", "acts show", "acts export", "secrets forget-previous"),
)
_ABUSE = (*_SERVE, "devices flagged")


def _between(least: int, most: int) -> Any:
    return Field(ge=least, le=most)


def _limit(default: str) -> Setting:
    # `authority.rate_limits` has these defaults, because they depend on other settings.
    return Setting(
        _SERVE, default=f"{default}; none on an open server that only this machine reaches"
    )


class Settings(BaseModel):
    """All settings, which never change. `hide_input_in_errors` keeps secrets out of errors."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", hide_input_in_errors=True, use_attribute_docstrings=True
    )

    database_url: Annotated[
        SecretStr | None, Setting(_DATABASE, default="SQLite in the data directory")
    ] = None
    """The database, as a PostgreSQL URL. Set a URL with a password in the environment, because
    every user of the machine can read flags."""
    ca_password: Annotated[
        SecretStr | None, Setting(default="with SQLite, a generated one in the data directory")
    ] = None
    """The passphrase. It encrypts the root's key. Without a KEK file or command, it also yields the
    key-encryption key (KEK), which wraps all other secrets."""
    server: Annotated[str | None, Setting()] = None
    """The URL of a running server, such as https://sma.example.org. The commands that administer an
    authority then work over its API, in place of a database. Before the command: --server."""
    server_key: Annotated[SecretStr | None, Setting()] = None
    """The access key for SMA_SERVER. Its role must allow what the command does."""
    server_key_file: Annotated[Path | None, Setting()] = None
    """A file with the access key for SMA_SERVER, in place of SMA_SERVER_KEY. Only its owner may be
    able to read it. Before the command: --server-key-file."""
    server_ca_file: Annotated[
        Path | None, Setting(default="the certificate authorities of this system")
    ] = None
    """The CAs (PEM) that SMA_SERVER's TLS certificate comes from. Before the command:
    --server-ca-file."""
    port: Annotated[int, _between(0, 65535), Setting(_SERVE)] = 8000
    """The port to listen on; 0 takes a free one."""
    data_dir: Annotated[Path, Setting(_DATABASE)] = Path("sma-data")
    """The directory of SQLite's file and the generated secrets."""
    host: Annotated[str, Setting(_SERVE)] = "127.0.0.1"
    """The address to listen on."""
    workers: Annotated[int | None, _between(1, 256), Setting(_SERVE, default=_PROCESSES)] = None
    """The number of processes that serve requests."""
    one_core: Annotated[bool, Setting(_SERVE, flag="--one-core/--any-core")] = True
    """Pin each process to one CPU core, which is faster (Linux only)."""
    access: Annotated[
        Access | None,
        Setting(_SERVE, default="open on loopback without trusted proxies, otherwise keys"),
    ] = None
    """Authentication of callers: `open` accepts every caller that reaches the address, `keys` asks
    for access keys."""
    publish_pki: Annotated[bool, Setting(_SERVE)] = False
    """Serve certificates, CRLs and OCSP without an access key. A public URL has the same effect."""

    tls_cert: Annotated[Path | None, Setting(_SERVE)] = None
    """Serve HTTPS with this certificate and its chain (PEM)."""
    tls_key: Annotated[Path | None, Setting(_SERVE)] = None
    """The private key of the TLS certificate (PEM, without a passphrase)."""
    tls_client_ca: Annotated[Path | None, Setting(_SERVE)] = None
    """The CAs (PEM) of client certificates, which callers may use instead of access keys."""
    tls_self: Annotated[bool, Setting(_SERVE)] = False
    """Serve HTTPS with a certificate for this machine, from a CA that is created in the data
    directory."""
    trusted_proxies: Annotated[
        tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...], Setting(_SERVE)
    ] = ()
    """Addresses and networks of proxies, separated by commas. Their X-Forwarded-For and Forwarded
    headers are trusted."""
    cors_origins: Annotated[tuple[str, ...], Setting(_SERVE)] = ()
    """Origins whose pages may call the API from a browser (CORS), separated by commas, such as
    https://app.example.org."""
    public_url: Annotated[str | None, Setting((*_SERVE, "provision", "provision-batch"))] = None
    """The public URL of the server. Device certificates then name the addresses of the CRL, of the
    issuer's certificate and of OCSP."""

    kek_file: Annotated[Path | None, Setting(_KEK)] = None
    """A file with the key-encryption key: 32 bytes, or 64 hex digits. It is used instead of
    CA_PASSWORD."""
    kek_command: Annotated[str | None, Field(repr=False), Setting(_KEK)] = None
    """A command, run without a shell, that writes the key-encryption key to stdout, such as the
    client of a KMS."""
    root_key_file: Annotated[Path | None, Setting(_ROOT_KEY, default="in the data directory")] = (
        None
    )
    """The file with the encrypted private key of the first root. Those of later roots are beside
    it, with the root's number in their names."""
    ca_key_type: Annotated[CaKeyType, Setting(_SIZES)] = CaKeyType.RSA_4096
    """The key type of a new root and intermediate: rsa-4096, ec-p384 or ec-p256."""
    tables: Annotated[int, _between(TABLES_PER_DEVICE, MAX_WIRE_INTEGER), Setting(_SIZES)] = (
        STANDARD_SIZES.tables
    )
    """The number of key tables of a new authority. It never changes."""
    keys_per_table: Annotated[int, _between(1, MAX_WIRE_INTEGER), Setting(_SIZES)] = (
        STANDARD_SIZES.keys_per_table
    )
    """The number of keys in each table of a new authority. It never changes."""
    manufacturer_id: Annotated[
        str, Field(min_length=1, max_length=100), Setting((*_SERVE, "provision"))
    ] = "SimulatedMfg"
    """The manufacturer_id in every verdict."""

    disclosure: Annotated[Disclosure, Setting(_SERVE)] = Disclosure.SERIAL
    """The information about the device in a PASS: serial, family or none."""
    replay: Annotated[ReplayPolicy, Setting(_SERVE)] = ReplayPolicy.RECORD
    """The answer to a camera token that the same caller submits again: `record` returns a verdict
    again, `refuse-same-caller` returns 409."""
    max_body_bytes: Annotated[int, _between(1_024, 16 * 1024 * 1024), Setting(_SERVE)] = 65_536
    """The largest request body, in bytes. A larger one gets 413."""
    pool_limit: Annotated[int, _between(1, 1_000_000), Setting(_SERVE)] = 10_000
    """The number of camera tokens that may wait for the database. Further callers get 503."""
    batch_limit: Annotated[int, _between(1, 10_000), Setting(_SERVE)] = 1_000
    """The number of camera tokens after which a commit takes no more requests."""
    request_timeout: Annotated[float, Field(gt=0, le=3600), Setting(_SERVE)] = 30.0
    """The time for a request to arrive completely, in seconds, before it gets 408."""
    database_wait: Annotated[float, Field(ge=0, le=3600), Setting((*_SERVE, "migrate"))] = 50.0
    """The time that a start waits for a PostgreSQL that does not answer, in seconds."""
    answer_timeout: Annotated[float, Field(gt=0, le=300), Setting(_SERVE)] = 10.0
    """The time that a caller waits for the database, in seconds, before it gets 503."""

    rate_validate: Annotated[str | None, _limit("300000/minute")] = None
    """The camera tokens that a caller may submit, such as "100/second; 3000/minute", or "none" for
    no limit."""
    rate_failures: Annotated[str | None, _limit("6000/minute")] = None
    """The FAIL verdicts that a caller may get."""
    rate_provision: Annotated[str | None, _limit("600/minute")] = None
    """The devices that a caller may provision."""
    rate_admin: Annotated[str | None, _limit("600/minute")] = None
    """All other requests of a caller, except /health/live and /health/ready."""
    rate_ocsp: Annotated[str | None, _limit("6000/minute")] = None
    """The OCSP requests of a caller that need a signature of their own: with a nonce, for unknown
    certificates or for several. Cached responses have no limit."""
    rate_guesses: Annotated[str | None, _limit("60/minute")] = None
    """The wrong credentials from one address."""
    rate_renew: Annotated[str | None, _limit("10/hour; 20/day")] = None
    """The certificates that a device may get by renewal."""
    rate_store: Annotated[SecretStr | None, Setting()] = None
    """A Redis, as a redis:// or rediss:// URL, in which several processes share their counts. It
    has no flag, because it may contain a password."""

    renewal_grace_days: Annotated[int, _between(0, 3_650), Setting(_SERVE)] = 90
    """The number of days after its end in which a device certificate can still be renewed."""
    audit_retention_days: Annotated[
        int | None,
        _between(1, 36_500),
        Setting(
            (*_SERVE, "doctor", "history prune"),
            default="all",
            aliases={"history prune": "--older-than-days"},
        ),
    ] = None
    """The number of whole days (UTC) of the audit log to keep. Older rows are deleted."""
    privacy_days: Annotated[
        int | None,
        _between(1, 36_500),
        Setting(
            (*_SERVE, "doctor", "history coarsen"),
            default="all",
            aliases={"history coarsen": "--older-than-days"},
        ),
    ] = None
    """The number of whole days (UTC) of the audit log to keep with exact times and addresses. Older
    rows have the hour alone, and no address."""
    abuse: Annotated[AbuseMode, Setting(_ABUSE)] = AbuseMode.FLAG
    """The action for devices far above their usual rate: off, shadow, flag or suspend."""
    abuse_factor: Annotated[float, _between(1, 1_000_000), Setting(_ABUSE)] = 10.0
    """The multiple of its usual pictures a day that a device may make."""
    abuse_least: Annotated[int, _between(1, 1_000_000_000), Setting(_ABUSE)] = 500
    """The number of pictures a day that every device may make."""

    log_format: Annotated[LogFormat, Setting(_SERVE)] = LogFormat.AUTO
    """The format of the log: json, pretty or auto. `auto` is pretty if stderr is a terminal."""
    log_level: Annotated[LogLevel, Setting(_SERVE)] = LogLevel.INFO
    """The lowest severity in the log: debug, info, warning or error. `info` logs a line for each
    request, `debug` also one for each batch."""
    slow_query_ms: Annotated[float, Field(gt=0, le=3_600_000), Setting(_SERVE)] = 1_000.0
    """Log statements that take longer than this, in milliseconds."""
    traces_url: Annotated[str | None, Setting(_SERVE)] = None
    """The URL of an OpenTelemetry collector (OTLP over HTTP), such as http://127.0.0.1:4318."""

    _traces = field_validator("traces_url")(add_traces_path)
    _url = field_validator("public_url")(check_url)
    _networks = field_validator("trusted_proxies", mode="before")(parse_networks)
    _rates = field_validator(
        *("rate_provision", "rate_validate", "rate_failures", "rate_admin"),
        *("rate_ocsp", "rate_guesses", "rate_renew"),
    )(check_rates)
    _redis = field_validator("rate_store")(check_redis_url)
    _origin_list = field_validator("cors_origins", mode="before")(split_list)
    _origins = field_validator("cors_origins")(check_origins)
    _passphrase = field_validator("ca_password")(check_passphrase)

    @property
    def processes(self) -> int:
        """The number of processes. `sma serve` sets `workers` at its start."""
        return self.workers or 1

    @property
    def serves_this_machine_alone(self) -> bool:
        """True if only this machine can reach the server and callers need no access key."""
        open_here = is_loopback(self.host) and self.resolved_access is Access.OPEN
        return open_here and not self.trusted_proxies

    @property
    def table_sizes(self) -> TableSizes:
        """The table sizes of a new authority. An existing authority keeps its own."""
        return TableSizes(self.tables, self.keys_per_table)

    @property
    def uses_sqlite(self) -> bool:
        """True if the database is a SQLite file on this machine."""
        return self.resolved_database_url.startswith("sqlite:")

    @property
    def sqlite_file(self) -> Path | None:
        """The path of the SQLite file, or None with PostgreSQL."""
        url = self.resolved_database_url
        return Path(url.removeprefix("sqlite:///")) if self.uses_sqlite else None

    @property
    def resolved_access(self) -> Access:
        """The authentication of callers, with the default applied.

        The default is open only on loopback without trusted proxies. So the server is never open to
        other machines unless the operator sets that.
        """
        if self.access is not None:
            return self.access
        # A proxy on this machine forwards requests from other machines.
        alone = is_loopback(self.host) and not self.trusted_proxies
        return Access.OPEN if alone else Access.KEYS

    @property
    def resolved_database_url(self) -> str:
        """The URL of the database: the one given, or SQLite in the data directory."""
        if self.database_url is None:
            return f"sqlite:///{self.data_dir / 'sma.db'}"
        return self.database_url.get_secret_value()


class NewSecret(BaseModel):
    """The new secret of a rotation of the key-encryption key. No other command reads it."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", hide_input_in_errors=True, use_attribute_docstrings=True
    )

    new_ca_password: Annotated[SecretStr | None, Setting()] = None
    """Replaces CA_PASSWORD, and yields the new KEK unless one of the next two settings is set."""
    new_kek_file: Annotated[Path | None, Setting(("secrets rotate",))] = None
    """A file with the new key-encryption key."""
    new_kek_command: Annotated[str | None, Field(repr=False), Setting(("secrets rotate",))] = None
    """A command that writes the new key-encryption key to stdout."""

    _passphrase = field_validator("new_ca_password")(check_passphrase)


PROTOTYPE: Mapping[str, Any] = {
    "tables": PROTOTYPE_SIZES.tables,
    "keys_per_table": PROTOTYPE_SIZES.keys_per_table,
    "port": 5001,
    "data_dir": Path("sma-prototype"),
}
"""Defaults with `--prototype`, for one device. Explicit settings override them."""

SANDBOX: Mapping[str, Any] = {
    "ca_key_type": CaKeyType.EC_P256,
    "data_dir": Path("sma-sandbox"),
}
"""Defaults with `--sandbox`: a CA key that is fast to create, and a directory of its own. It is no
setting, so that a copied environment or file never turns an authority into a sandbox."""
