"""TLS of the server: load and check certificate, key and client CA; reload them on SIGHUP.

`web.server` calls this. uvicorn passes one SSLContext to the event loop and never replaces it.
`ReloadableContext` delegates each new connection to the context that was loaded last. New files
apply from the next handshake on. Existing connections keep their certificate.
A failed reload must never stop the server: it keeps the previous context.
"""

import asyncio
import logging
import signal
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization

from birthmark_sma.config import Settings
from birthmark_sma.errors import BirthmarkError, ConfigurationError
from birthmark_sma.runtime.secret_files import read_private_file

_log = logging.getLogger(__name__)

# TLS 1.2: only cipher suites with forward secrecy and authenticated encryption (RFC 9325, section
# 4.2). All cipher suites of TLS 1.3 have both.
_CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Paths of the PEM files: certificate chain, its private key, and CA of the clients."""

    certificate: Path
    key: Path
    client_ca: Path | None


class LoadedTls(NamedTuple):
    """A context for new connections, the certificate's expiry, and a warning for the operator."""

    context: ssl.SSLContext
    valid_until: datetime
    warning: str | None


def tls_files(settings: Settings) -> TlsFiles | None:
    """Return the TLS files of the settings, or None for plain HTTP.

    Raises ConfigurationError if the key, the certificate or both are missing.
    """
    certificate, key = settings.tls_cert, settings.tls_key
    if certificate is not None and key is not None:
        return TlsFiles(certificate, key, settings.tls_client_ca)
    if certificate is not None:
        raise ConfigurationError("A TLS certificate needs its private key: give --tls-key as well")
    if key is not None:
        raise ConfigurationError("A TLS key needs its certificate: give --tls-cert as well")
    if settings.tls_client_ca is not None and not settings.tls_self:
        raise ConfigurationError(
            "Clients show certificates over TLS alone: with --tls-client-ca give --tls-cert and"
            " --tls-key, or --tls-self"
        )
    return None


def load_tls(files: TlsFiles) -> LoadedTls:
    """Read the files and return a new context.

    Raises ConfigurationError if a file is unusable, or PrivateFileError if other users can read the
    key. The message names the file.
    """
    certificate = _first_certificate(files.certificate)
    _check_key(files, certificate)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # A TLS 1.2 client could otherwise make the server repeat the expensive handshake.
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.set_ciphers(_CIPHERS)
    context.set_alpn_protocols(["http/1.1"])
    try:
        # An empty password: OpenSSL would otherwise prompt at the terminal if the file was replaced
        # by an encrypted key after _check_key.
        context.load_cert_chain(files.certificate, files.key, password=lambda: b"")
    except (ssl.SSLError, OSError) as error:
        raise ConfigurationError(
            f"{files.certificate} cannot be used for TLS: {_reason(error)}"
        ) from None
    if files.client_ca is not None:
        _ask_for_client_certificates(context, files.client_ca)
    return LoadedTls(context, certificate.not_valid_after_utc, _doubt(files, certificate))


class ReloadableContext(ssl.SSLContext):
    """SSLContext that delegates each new connection to the context that was loaded last."""

    def __new__(cls, _files: TlsFiles) -> "ReloadableContext":
        """Create the outer context, which never handles a connection itself."""
        return super().__new__(cls, ssl.PROTOCOL_TLS_SERVER)

    def __init__(self, files: TlsFiles) -> None:
        """Load the files. Raises the errors of `load_tls`."""
        self._files = files
        self._loaded = load_tls(files)
        self._reloading = threading.Lock()

    def wrap_bio(self, *arguments: Any, **options: Any) -> ssl.SSLObject:
        """Start a TLS connection. Event loops call no other method of a context."""
        return self._loaded.context.wrap_bio(*arguments, **options)

    def reload(self) -> None:
        """Read the files again and log the result. Keep the previous context if they are unusable.

        Thread-safe. Runs in a worker thread; `wrap_bio` runs in the event loop's thread.
        """
        try:
            # Two signals may overlap. The lock ensures that the later read wins.
            with self._reloading:
                self._loaded = loaded = load_tls(self._files)
        except (BirthmarkError, OSError) as error:
            _log.error("TLS goes on with the certificate it had: %s.", error)
            return
        # A warning, so the operator who sent the signal sees it at the usual log levels.
        _log.warning(
            "TLS uses %s as it is now, valid until %s.",
            self._files.certificate,
            loaded.valid_until.date(),
        )
        if loaded.warning is not None:
            _log.warning(loaded.warning)


def block_sighup() -> None:
    """Block SIGHUP in this thread and in all threads and processes that it starts.

    Without a handler SIGHUP ends the process. Call this before the first thread starts, because
    threads inherit the signal mask.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})


def unblock_sighup() -> None:
    """Unblock SIGHUP in this thread. A pending SIGHUP is delivered at once."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})


def serving_context(
    files: TlsFiles, _config: object, _default: Callable[[], ssl.SSLContext]
) -> ssl.SSLContext:
    """Return the TLS context of a server process, and reload its files on each SIGHUP.

    uvicorn calls this in the main thread, with the event loop running. Raises the errors of
    `load_tls`.
    """
    context = ReloadableContext(files)
    loop = asyncio.get_running_loop()
    # In a worker thread: a slow disk must not block the event loop.
    read_again = partial(loop.run_in_executor, None, context.reload)
    loop.add_signal_handler(signal.SIGHUP, read_again)
    # After the handler is installed: a pending SIGHUP would end the process without it.
    unblock_sighup()
    return context


def _ask_for_client_certificates(context: ssl.SSLContext, client_ca: Path) -> None:
    """Request a client certificate and verify it if the client sends one.

    It is optional, because other clients use a bearer access key. Raises ConfigurationError.
    """
    _first_certificate(client_ca)
    try:
        context.load_verify_locations(client_ca)
    except (ssl.SSLError, OSError) as error:
        raise ConfigurationError(f"{client_ca} cannot be used: {_reason(error)}") from None
    context.verify_mode = ssl.CERT_OPTIONAL
    # Trust an intermediate CA that the operator names, even without its root.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN


def _first_certificate(file: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificates(file.read_bytes())[0]
    except OSError as error:
        raise ConfigurationError(f"{file} cannot be read: {error.strerror}") from None
    except ValueError:
        raise ConfigurationError(f"{file} holds no certificate in PEM") from None


def _check_key(files: TlsFiles, certificate: x509.Certificate) -> None:
    try:
        key = serialization.load_pem_private_key(read_private_file(files.key), None)
        fits = key.public_key() == certificate.public_key()
    except TypeError:
        raise ConfigurationError(
            f"{files.key} is encrypted. A server that starts by itself needs the TLS key without a"
            " passphrase, in a file that only its owner can read"
        ) from None
    except (ValueError, UnsupportedAlgorithm):
        raise ConfigurationError(f"{files.key} holds no private key in PEM for TLS") from None
    if not fits:
        raise ConfigurationError(
            f"The key in {files.key} is not that of the certificate in {files.certificate}; where"
            " that file holds a chain, the server's own certificate comes first"
        )


def _doubt(files: TlsFiles, certificate: x509.Certificate) -> str | None:
    now = datetime.now(UTC)
    if certificate.not_valid_after_utc < now:
        when = f"expired on {certificate.not_valid_after_utc:%Y-%m-%d %H:%M} UTC"
    elif certificate.not_valid_before_utc > now:
        when = f"is not valid before {certificate.not_valid_before_utc:%Y-%m-%d %H:%M} UTC"
    else:
        return None
    return f"The certificate in {files.certificate} {when}, by this machine's clock."


def _reason(error: OSError) -> str:
    """Return the reason of an error without OpenSSL's file names and line numbers."""
    reason = getattr(error, "reason", None) or error.strerror or "it is not what TLS needs"
    return reason.replace("_", " ").lower()
