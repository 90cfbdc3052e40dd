"""Import the product's code for the collectors. Only this module names internal modules.

If a module moves or a name changes, change its import here. The names behind `as` and the names of
the functions must stay, because the collectors use them.
"""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from birthmark_sma import errors as error_module
from birthmark_sma.authority.access import cache as access_key_cache
from birthmark_sma.authority.access import sessions
from birthmark_sma.authority.authority import Authority, open_authority
from birthmark_sma.authority.ca.ceremony import ROOT_KEY_FILE
from birthmark_sma.authority.kek import wrapping
from birthmark_sma.authority.kek.passphrase_file import PASSPHRASE_FILE
from birthmark_sma.authority.kek.sources import KekSecret, KekSource
from birthmark_sma.authority.key_tables import cache as key_table_cache
from birthmark_sma.authority.operations import backup_manifest
from birthmark_sma.authority.rate_limits.limits import DEFAULTS as DEFAULT_RATES
from birthmark_sma.cli import exit_codes
from birthmark_sma.cli.commands import device_files
from birthmark_sma.cli.main import app as command_line
from birthmark_sma.config import (
    CONFIG_FILE_VARIABLE,
    DEFAULT_CONFIG_FILE,
    PROTOTYPE,
    SANDBOX,
    NewSecret,
    Settings,
    environment_variable,
    load_settings,
)
from birthmark_sma.device import (
    bundle_queue,
    clock,
    nonces,
    state,
    state_directory,
    state_encryption,
)
from birthmark_sma.device.renewal import renewer
from birthmark_sma.device.renewal.schedule import Plan
from birthmark_sma.protocol import bundle, camera_token, key_derivation, key_table, replay, verdict
from birthmark_sma.simulation import report as simulation_report
from birthmark_sma.storage import schema
from birthmark_sma.web import problem_documents, problem_lookup, problems
from birthmark_sma.web.api.app import create_app
from birthmark_sma.web.dashboard.session_middleware import session_cookie
from birthmark_sma.web.logs.setup import configure as configure_logging
from birthmark_sma.web.middleware.security_headers import EVERYWHERE
from birthmark_sma.web.pipeline import Application
from birthmark_sma.web.request_context import begin_request
from birthmark_sma.web.sandbox import application as sandbox_front
from birthmark_sma.web.sandbox import scenario_catalog
from birthmark_sma.web.server import make_request_log

__all__ = [
    "CONFIG_FILE_VARIABLE",
    "DEFAULT_CONFIG_FILE",
    "DEFAULT_RATES",
    "MIGRATIONS",
    "PROTOTYPE",
    "SANDBOX",
    "KekSecret",
    "KekSource",
    "NewSecret",
    "Settings",
    "backup_manifest",
    "camera_token",
    "command_line",
    "configure_logging",
    "environment_variable",
    "error_module",
    "exit_codes",
    "load_settings",
    "replay",
    "scenario_catalog",
    "schema",
    "state_encryption",
    "verdict",
]

MIGRATIONS = Path(schema.__file__).parents[1] / "migrations"


def make_application(settings: Settings) -> Application:
    """Return the ASGI application of the authority that `settings` describe."""
    return create_app(lambda: open_authority(settings), log=make_request_log(settings))


def build_application(
    open_authority: Callable[[], Authority], front: Callable[..., object]
) -> object:
    """Build the application with another outermost class, and never start it."""
    return create_app(open_authority, front=front)  # type: ignore[arg-type]


def find_exit_code(error: error_module.BirthmarkError) -> int:
    """Return the exit code of a command that ends with this error."""
    return exit_codes.exit_code(error)


def respond_to(error: Exception) -> JSONResponse:
    """Return the problem document of an error."""
    scope = {
        "type": "http",
        "method": "GET",
        "scheme": "http",
        "client": None,
        "path": "/",
        "raw_path": b"/",
        "headers": [(b"host", b"localhost")],
    }
    return problem_documents.error_response(begin_request(scope), error)


def make_request_errors() -> dict[str, Exception]:
    """Return an error for each problem that has no class in errors/."""
    made: dict[str, Exception] = {
        each.slug: problems.RequestError(each.slug, "")
        for each in (*problems.TABLE, *problem_lookup.OF_CONNECTIONS)
        if each.error is problems.RequestError
    }
    for reason in verdict.Reason:
        if reason.told_to_caller:
            made[f"address {reason.value}"] = problems.UnknownAddressError(reason)
    made["invalid"] = problems.InvalidRequestError([])
    made["unexpected"] = ValueError()
    for status in (404, 405):
        made[f"HTTP {status}"] = HTTPException(status)
    return made


def list_connection_problems() -> list[dict[str, Any]]:
    """Return the problems that end a connection before its request is complete."""
    return [
        {"slug": each.slug, "title": each.title, "status": each.status, "detail": each.detail}
        for each in problem_lookup.OF_CONNECTIONS
    ]


def list_sandbox() -> dict[str, Any]:
    """Return the response of GET /sandbox, and the header fields of a sandbox."""
    return {
        "path": sandbox_front.PATH,
        "listed": sandbox_front._LIST,
        "request_header": scenario_catalog.HEADER,
        "response_header": scenario_catalog.MARK,
        "response_header_value": scenario_catalog.MARKED,
        "serial_prefix": scenario_catalog.SERIAL_PREFIX,
    }


def list_server_headers() -> dict[str, str]:
    """Return the header fields that the HTTP server adds to every response of the application."""
    return {name.lower(): value for name, value in EVERYWHERE}


def list_access_key_format() -> dict[str, Any]:
    """Return the format of access keys and session tokens, and of the stored digest."""
    return {
        "prefix": access_key_cache.PREFIX,
        "id_characters": access_key_cache.ID_CHARACTERS,
        "secret_characters": access_key_cache.SECRET_CHARACTERS,
        "digest_of_x": access_key_cache.digest("x").hex(),
        "session_token_characters": sessions.TOKEN_CHARACTERS,
        "session_cookie": session_cookie("http"),
        "session_cookie_over_tls": session_cookie("https"),
    }


def list_additional_data() -> dict[str, str]:
    """Return the additional authenticated data (AES-GCM) of each kind of wrapped value."""
    return {
        "key-encryption key 7": wrapping._bridge_place(7).decode(),
        "key table 7": key_table_cache._place(7, epoch=0).decode(),
        "key table 7, rotated twice": key_table_cache._place(7, epoch=2).decode(),
        "NUC hash key": wrapping._NUC_HASH_KEY_PLACE.decode(),
    }


def make_key_encryption_key(key: bytes) -> wrapping.KeyEncryptionKey:
    """Return a key-encryption key from the given 32 bytes."""
    return wrapping.KeyEncryptionKey(1, key)


def digest_nuc_hash(key: bytes, nuc_hash: bytes) -> bytes:
    """Return the value that the database stores in place of a NUC hash."""
    return wrapping.NucHashIndex(key).of(nuc_hash)


def list_device_states() -> Mapping[str, type]:
    """Return the classes of a camera's state by their names in the state file."""
    return state._KINDS


def list_device_files() -> dict[str, str]:
    """Return the names of the files in a camera's directory."""
    return {
        "state": state.FILE,
        "nonces": nonces.FILE,
        "clock": clock.FILE,
        "renewal": renewer.FILE,
        "lock": state_directory.LOCK,
        "partial": state_directory._PARTIAL,
        "bundle waiting": bundle_queue._WAITING,
        "bundle refused": bundle_queue._REFUSED,
        "bundle damaged": bundle_queue._DAMAGED,
    }


def make_device_records() -> dict[str, bytes]:
    """Return the content of the small files in a camera's directory."""
    return {
        "nonces": nonces._Reservation(bytes(16), 7).to_json(),
        "clock": clock._to_json(datetime(2026, 1, 2, tzinfo=UTC)),
        "renewal": Plan("00" * 32, datetime(2026, 1, 2, tzinfo=UTC)).to_json(),
    }


def list_file_names() -> dict[str, str]:
    """Return the names of the files that commands write."""
    return {
        "passphrase": PASSPHRASE_FILE,
        "root key": ROOT_KEY_FILE,
        "device private key": device_files.PRIVATE_KEY,
        "device certificate": device_files.CERTIFICATE,
        "device chain": device_files.CHAIN,
        "device data": device_files.DATA,
        "backup manifest": backup_manifest.MANIFEST,
        "backup of SQLite": backup_manifest.SQLITE_FILE,
        "backup of PostgreSQL": backup_manifest.POSTGRESQL_FILE,
    }


def list_derivations() -> dict[str, key_derivation.Derivation]:
    """Return the key derivations of camera tokens."""
    return {
        "normative": key_derivation.NORMATIVE,
        "published clients": key_derivation.PUBLISHED_CLIENTS,
    }


def list_table_sizes() -> dict[str, key_table.TableSizes]:
    """Return the number of key tables and of keys per table of each profile."""
    return {
        "standard": key_table.STANDARD_SIZES,
        "prototype": key_table.PROTOTYPE_SIZES,
        "published": key_table.PUBLISHED_SIZES,
    }


def list_bundle_limits() -> dict[str, int]:
    """Return the size limits of bundles."""
    return {
        "image hash bytes": bundle.IMAGE_HASH_BYTES,
        "certificates": bundle.CHAIN_LENGTH,
        "certificate bytes": bundle.MAX_CERTIFICATE_BYTES,
        "signature bytes": bundle.MAX_SIGNATURE_BYTES,
        "bundle bytes": bundle.MAX_BUNDLE_BYTES,
    }


def list_format_versions() -> dict[str, Any]:
    """Return the version of each stored format."""
    return {
        "backup": backup_manifest.FORMAT,
        "bundle": bundle.VERSION,
        "bundle signing prefix": bundle.SIGNING_PREFIX.decode(),
        "device state": state_encryption._FORMAT,
        "simulation report": simulation_report.FORMAT,
        "schema": schema.HEAD_REVISION,
    }
