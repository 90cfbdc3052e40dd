"""Read the settings once: flags override the environment, the environment overrides a file.

The command line calls `load_settings`; all other modules get the frozen result. Three variables
have the names of hosting platforms (`DATABASE_URL`, `CA_PASSWORD`, `PORT`). All others have the
field's name in capitals with the prefix `SMA_`. An unknown `SMA_` variable is an error: if a
misspelt setting were ignored, a less safe default could apply unnoticed. Error messages name the
setting, never its value.
"""

import difflib
import ipaddress
import tomllib
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator

from birthmark_sma.errors import ConfigurationError
from birthmark_sma.http_requests import is_loopback
from birthmark_sma.pki.keys.ca_keys import CaKeyType
from birthmark_sma.protocol.key_table import (
    MAX_WIRE_INTEGER,
    PROTOTYPE_SIZES,
    STANDARD_SIZES,
    TABLES_PER_DEVICE,
    TableSizes,
)
from birthmark_sma.rates import parse_rates

PREFIX = "SMA_"
CONFIG_FILE_VARIABLE = "SMA_CONFIG_FILE"
DEFAULT_CONFIG_FILE = Path("sma.toml")

# A settings file with one of these must not be readable by other users.
SECRET_FIELDS = {"ca_password", "database_url", "rate_store"}
_DEFAULT_PORTS = {"http": 80, "https": 443}
_PLATFORM_NAMES = {
    "database_url": "DATABASE_URL",
    "ca_password": "CA_PASSWORD",
    "port": "PORT",
}


class Access(StrEnum):
    """Authentication of callers: none (`open`), or access keys (`keys`)."""

    OPEN = "open"
    KEYS = "keys"


class Disclosure(StrEnum):
    """The information about the device in the response to a PASS."""

    SERIAL = "serial"
    FAMILY = "family"
    NONE = "none"


class AbuseMode(StrEnum):
    """The action for a device far above its usual rate."""

    OFF = "off"
    SHADOW = "shadow"
    FLAG = "flag"
    SUSPEND = "suspend"


class ReplayPolicy(StrEnum):
    """The treatment of a camera token that the same caller submits again."""

    RECORD = "record"
    REFUSE_SAME_CALLER = "refuse-same-caller"


class LogFormat(StrEnum):
    """The format of the log."""

    AUTO = "auto"
    JSON = "json"
    PRETTY = "pretty"


class LogLevel(StrEnum):
    """The lowest severity that is logged."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class Settings(BaseModel):
    """All settings. Frozen: they do not change while the program runs.

    `hide_input_in_errors` keeps secrets out of validation errors.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    data_dir: Path = Path("sma-data")
    """The directory of SQLite's file, the generated passphrase and the root's encrypted key."""
    database_url: SecretStr | None = None
    """PostgreSQL in any form that libpq accepts, or sqlite:///FILE; unset: SQLite in `data_dir`."""
    ca_password: SecretStr | None = None
    """The passphrase. It encrypts the root's key. Without a KEK file or command, it also yields the
    key-encryption key, which wraps all other secrets."""
    kek_file: Path | None = None
    """A file with the 32-byte key-encryption key (KEK), raw or as 64 hex digits."""
    kek_command: Annotated[str | None, Field(repr=False)] = None
    """A command line, run without a shell, that writes the KEK to stdout."""
    root_key_file: Path | None = None
    """The file to which `sma init` writes the root's encrypted key; default: in `data_dir`."""

    tls_cert: Path | None = None
    """The server's TLS certificate and its chain, as PEM; unset: plain HTTP."""
    tls_key: Path | None = None
    """The private key of `tls_cert`, as PEM without a passphrase."""
    tls_client_ca: Path | None = None
    """The CAs, as PEM, of client certificates that callers may use instead of a bearer key."""
    tls_self: bool = False
    """Serve HTTPS with a certificate for this machine, issued by a CA in `data_dir`."""
    trusted_proxies: tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...] = ()
    """Proxies whose headers about the sender of a request are trusted; as text, comma-separated."""

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    workers: Annotated[int, Field(ge=1, le=256)] = 1
    one_core: bool = True
    """Pin each process to one CPU core, if the system supports it (`runtime.cpu_affinity`)."""
    access: Access | None = None
    """Authentication of callers; unset: open on loopback without proxies, else access keys."""
    publish_pki: bool = False
    """Serve certificates and CRLs without an access key, because verifiers have none."""
    cors_origins: tuple[str, ...] = ()
    """The origins whose pages may call the API from a browser (CORS), as browsers write them."""
    public_url: str | None = None
    """The public URL of this server. If set, certificates contain the address of the CRL."""

    manufacturer_id: Annotated[str, Field(min_length=1, max_length=100)] = "SimulatedMfg"
    disclosure: Disclosure = Disclosure.SERIAL
    replay: ReplayPolicy = ReplayPolicy.RECORD
    """The treatment of a token that the same caller submits again: a verdict again, or 409."""
    ca_key_type: CaKeyType = CaKeyType.RSA_4096
    tables: Annotated[int, Field(ge=TABLES_PER_DEVICE, le=MAX_WIRE_INTEGER)] = STANDARD_SIZES.tables
    keys_per_table: Annotated[int, Field(ge=1, le=MAX_WIRE_INTEGER)] = STANDARD_SIZES.keys_per_table

    max_body_bytes: Annotated[int, Field(ge=1_024, le=16 * 1024 * 1024)] = 65_536
    pool_limit: Annotated[int, Field(ge=1, le=1_000_000)] = 10_000
    """The number of camera tokens that may wait for the writer; further callers get an error."""
    batch_limit: Annotated[int, Field(ge=1, le=10_000)] = 1_000
    """The number of camera tokens after which a batch (one commit) takes no further request."""
    request_timeout: Annotated[float, Field(gt=0, le=3600)] = 30.0
    """Seconds in which a request must have arrived completely."""
    answer_timeout: Annotated[float, Field(gt=0, le=300)] = 10.0
    """Seconds that a caller waits for the database before it gets an error (503)."""

    rate_provision: str | None = None
    """Rate limit of devices that a caller provisions: as "600/minute", or "none"."""
    rate_validate: str | None = None
    """Rate limit of camera tokens that a caller submits."""
    rate_failures: str | None = None
    """Rate limit of FAIL verdicts that a caller gets."""
    rate_admin: str | None = None
    """Rate limit of all other requests of a caller."""
    rate_guesses: str | None = None
    """Rate limit of wrong credentials from one address."""
    rate_store: SecretStr | None = None
    """A Redis in which several processes share their counts: a redis:// or rediss:// URL. It may
    contain a password."""

    audit_retention_days: Annotated[int | None, Field(ge=1, le=36_500)] = None
    """The number of whole days of the audit log that a server keeps; unset: all."""

    abuse: AbuseMode = AbuseMode.FLAG
    """The action for devices far above their usual rate. Only `suspend` changes a device."""
    abuse_factor: Annotated[float, Field(ge=1, le=1_000_000)] = 10.0
    """The multiple of its usual pictures a day that a device may make."""
    abuse_least: Annotated[int, Field(ge=1, le=1_000_000_000)] = 500
    """The number of pictures a day that every device may make, whatever its usual number is."""

    log_format: LogFormat = LogFormat.AUTO
    """Text for people or JSON; `auto` is text if stderr is a terminal."""
    log_level: LogLevel = LogLevel.INFO
    """`info` logs a line for each request, `debug` also one for each batch."""
    slow_query_ms: Annotated[float, Field(gt=0, le=3_600_000)] = 1_000.0
    """Statements that take longer than this, in milliseconds, are logged."""

    traces_url: str | None = None
    """The URL of a collector for OpenTelemetry traces (OTLP over HTTP); unset: no traces."""

    @field_validator("traces_url")
    @classmethod
    def _path_of_traces(cls, value: str | None) -> str | None:
        url = cls._plain_url(value)
        return f"{url}/v1/traces" if url and not urlsplit(url).path else url

    @field_validator("public_url")
    @classmethod
    def _plain_url(cls, value: str | None) -> str | None:
        if value is None:
            return None
        parts = urlsplit(value)
        plain = value.isascii() and value.isprintable() and " " not in value
        if not (plain and parts.scheme in {"http", "https"} and parts.hostname):
            raise ValueError("it is a plain http:// or https:// URL with a host")
        if parts.query or parts.fragment or parts.username:
            raise ValueError("it has no query, fragment or user")
        return value.rstrip("/")

    @field_validator("trusted_proxies", mode="before")
    @classmethod
    def _networks(cls, value: Any) -> Any:
        listed = value.split(",") if isinstance(value, str) else value
        texts = isinstance(listed, list | tuple) and all(isinstance(each, str) for each in listed)
        if not texts:
            raise ValueError("it is a list of addresses and networks")
        try:
            networks = tuple(ipaddress.ip_network(each.strip()) for each in listed if each.strip())
        except ValueError as error:
            raise ValueError(f"{error}; give addresses and networks, as in 10.0.0.0/8") from None
        # With 0.0.0.0/0 every client could claim any address in a header.
        if any(network.prefixlen == 0 for network in networks):
            raise ValueError("whoever trusts every address believes anyone: name the proxies")
        return networks

    @field_validator(
        "rate_provision", "rate_validate", "rate_failures", "rate_admin", "rate_guesses"
    )
    @classmethod
    def _rate(cls, value: str | None) -> str | None:
        if value is not None:
            parse_rates(value)
        return value

    @field_validator("rate_store")
    @classmethod
    def _redis_url(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            try:
                parts = urlsplit(value.get_secret_value())
                usable = parts.scheme in {"redis", "rediss"} and bool(parts.hostname)
                usable = usable and (parts.port is None or parts.port > 0)
            except ValueError:
                usable = False
            if not usable:
                raise ValueError("it is a URL as redis://host:6379/0, or rediss:// for TLS")
        return value

    @field_validator("cors_origins", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(each.strip() for each in value.split(",") if each.strip())
        return value

    @field_validator("cors_origins")
    @classmethod
    def _exact_origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not all(is_origin(each) for each in value):
            raise ValueError(
                "each is one origin as browsers write it, as https://app.example.org or"
                " http://localhost:3000; neither * nor null, and no path"
            )
        return value

    @field_validator("ca_password")
    @classmethod
    def _usable_passphrase(cls, value: SecretStr | None) -> SecretStr | None:
        return _checked_passphrase(value)

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
        return (
            Path(self.resolved_database_url.removeprefix("sqlite:///"))
            if self.uses_sqlite
            else None
        )

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

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    new_ca_password: SecretStr | None = None
    """Replaces CA_PASSWORD, and yields the new KEK unless one of the next two fields is set."""
    new_kek_file: Path | None = None
    """A file with the new KEK, as `kek_file`."""
    new_kek_command: Annotated[str | None, Field(repr=False)] = None
    """A command line that writes the new KEK, as `kek_command`."""

    @field_validator("new_ca_password")
    @classmethod
    def _usable_passphrase(cls, value: SecretStr | None) -> SecretStr | None:
        return _checked_passphrase(value)


def _checked_passphrase(value: SecretStr | None) -> SecretStr | None:
    if value is not None and not 1 <= len(value.get_secret_value().encode()) <= 1023:
        raise ValueError("a passphrase has 1 to 1023 bytes")
    return value


PROTOTYPE: Mapping[str, Any] = {
    "tables": PROTOTYPE_SIZES.tables,
    "keys_per_table": PROTOTYPE_SIZES.keys_per_table,
    "port": 5001,
    "data_dir": Path("sma-prototype"),
}
"""Defaults with `--prototype`, for the prototype with one device. Explicit settings override them.
"""

SANDBOX: Mapping[str, Any] = {
    "ca_key_type": CaKeyType.EC_P256,
    "data_dir": Path("sma-sandbox"),
}
"""Defaults with `--sandbox`: a CA key that is fast to create, and a separate directory. There is no
setting `sandbox`, so that a copied environment or file never turns an authority into a sandbox."""


def is_origin(text: str) -> bool:
    """Return whether a text is an origin as browsers serialise it (RFC 6454, section 6.2)."""
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        return False
    if parts.scheme not in _DEFAULT_PORTS or not parts.hostname or port == 0:
        return False
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    end = "" if port in {None, _DEFAULT_PORTS[parts.scheme]} else f":{port}"
    plain = text.isascii() and text.isprintable() and not set(text) & set(" *\\\"'<>")
    return plain and text == f"{parts.scheme}://{host}{end}"


def environment_variable(field: str) -> str:
    """Return the environment variable of a setting, such as SMA_DATA_DIR for `data_dir`."""
    return _PLATFORM_NAMES.get(field, PREFIX + field.upper())


def load_settings(
    flags: Mapping[str, Any],
    environ: Mapping[str, str],
    *,
    prototype: bool = False,
    sandbox: bool = False,
) -> Settings:
    """Merge flags, environment and file into Settings.

    A flag that is None counts as not given, and an empty variable as unset. Raises
    ConfigurationError, with the name of the setting and never its value, if a setting is unknown or
    invalid.
    """
    # Later mappings override earlier ones.
    merged = (
        (dict(SANDBOX) if sandbox else {})
        | (dict(PROTOTYPE) if prototype else {})
        | _from_file(environ)
        | _from_environment(environ)
        | {field: value for field, value in flags.items() if value is not None}
    )
    try:
        return Settings(**merged)
    except ValidationError as error:
        raise ConfigurationError(_explain(error)) from None


def load_new_secret(flags: Mapping[str, Any], environ: Mapping[str, str]) -> NewSecret:
    """Merge flags and environment into NewSecret; flags override. Raises ConfigurationError."""
    known = {environment_variable(field): field for field in NewSecret.model_fields}
    given = {known[name]: value for name, value in environ.items() if name in known and value}
    try:
        return NewSecret(**given | {name: value for name, value in flags.items() if value})
    except ValidationError as error:
        raise ConfigurationError(_explain(error)) from None


def _from_environment(environ: Mapping[str, str]) -> dict[str, str]:
    known = {environment_variable(field): field for field in Settings.model_fields}
    others = [CONFIG_FILE_VARIABLE, *map(environment_variable, NewSecret.model_fields)]
    for variable in environ:
        if variable.startswith(PREFIX) and variable not in {*known, *others}:
            nearest = _nearest(variable, [*known, *others])
            raise ConfigurationError(f"{variable} is not a setting.{nearest}")
    return {known[name]: value for name, value in environ.items() if name in known and value}


def _from_file(environ: Mapping[str, str]) -> dict[str, Any]:
    named = environ.get(CONFIG_FILE_VARIABLE)
    path = Path(named) if named else DEFAULT_CONFIG_FILE
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if named:
            raise ConfigurationError(f"{CONFIG_FILE_VARIABLE} names no file: {path}.") from None
        return {}
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigurationError(f"The settings file {path} cannot be read: {error}.") from None
    for key in content:
        if key not in Settings.model_fields:
            nearest = _nearest(key, list(Settings.model_fields))
            raise ConfigurationError(f"{key} in {path} is not a setting.{nearest}")
    if SECRET_FIELDS & content.keys() and path.stat().st_mode & 0o077:
        raise ConfigurationError(
            f"{path} holds a secret and can be read by others. Type: chmod 600 {path}"
        )
    return content


def _nearest(name: str, known: list[str]) -> str:
    # Compared without the common prefix, which would make all names look similar.
    by_stem = {each.removeprefix(PREFIX).lower(): each for each in known}
    matches = difflib.get_close_matches(name.removeprefix(PREFIX).lower(), by_stem, n=1)
    return f" Did you mean {by_stem[matches[0]]}?" if matches else ""


def _explain(error: ValidationError) -> str:
    first = error.errors(include_input=False, include_url=False)[0]
    field = str(first["loc"][0]) if first["loc"] else "settings"
    what = first["msg"].removeprefix("Value error, ")
    return f"{environment_variable(field)} cannot be used: {what[:1].lower()}{what[1:]}."
