"""TLS for the server itself: its certificate, the CA of client certificates, and their renewal.

uvicorn gives the event loop one SSLContext for good. `ReloadableContext` is one that hands every
new connection to the context loaded last: a changed certificate, or another CA for clients, holds
from the next handshake on, and connections that exist go on as they began.
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

# For TLS 1.2: only key agreement with forward secrecy, and authenticated encryption (RFC 9325,
# section 4.2). TLS 1.3 has no others.
_CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Where the certificate chain, its key and the CA of client certificates are, as PEM."""

    certificate: Path
    key: Path
    client_ca: Path | None


class LoadedTls(NamedTuple):
    """A context for new connections, and what an operator should know of its certificate."""

    context: ssl.SSLContext
    valid_until: datetime
    warning: str | None


def tls_files(settings: Settings) -> TlsFiles | None:
    """Return the files that the settings name, or None where the server speaks plain HTTP.

    Raises ConfigurationError where something is missing, or contradicts something else.
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
    """Return a context made from the files as they are now.

    Raises ConfigurationError, or PrivateFileError where the key can be read by others; the sentence
    names the file.
    """
    certificate = _first_certificate(files.certificate)
    _check_key(files, certificate)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.set_ciphers(_CIPHERS)
    context.set_alpn_protocols(["http/1.1"])
    try:
        # Never a question at the terminal, should an encrypted key have come there meanwhile.
        context.load_cert_chain(files.certificate, files.key, password=lambda: b"")
    except (ssl.SSLError, OSError) as error:
        raise ConfigurationError(
            f"{files.certificate} cannot be used for TLS: {_reason(error)}"
        ) from None
    if files.client_ca is not None:
        _ask_for_client_certificates(context, files.client_ca)
    return LoadedTls(context, certificate.not_valid_after_utc, _doubt(files, certificate))


class ReloadableContext(ssl.SSLContext):
    """Hands each new connection to the context loaded last."""

    def __new__(cls, _files: TlsFiles) -> "ReloadableContext":
        """Make the outer context, which never sees a connection itself."""
        return super().__new__(cls, ssl.PROTOCOL_TLS_SERVER)

    def __init__(self, files: TlsFiles) -> None:
        """Load for the first time. Raises what `load_tls` raises."""
        self._files = files
        self._loaded = load_tls(files)
        self._reloading = threading.Lock()

    def wrap_bio(self, *arguments: Any, **options: Any) -> ssl.SSLObject:
        """Begin a connection: the one thing that event loops do with a context."""
        return self._loaded.context.wrap_bio(*arguments, **options)

    def reload(self) -> None:
        """Read the files again. Where they cannot be used, the last ones stay. Says what it did."""
        try:
            with self._reloading:  # who reads last is right
                self._loaded = loaded = load_tls(self._files)
        except (BirthmarkError, OSError) as error:
            _log.error("TLS goes on with the certificate it had: %s.", error)
            return
        # Whoever sent the signal wants to know: this is said at any level of detail.
        _log.warning(
            "TLS uses %s as it is now, valid until %s.",
            self._files.certificate,
            loaded.valid_until.date(),
        )
        if loaded.warning is not None:
            _log.warning(loaded.warning)


def block_sighup() -> None:
    """Keep SIGHUP waiting, in this thread and in threads and processes that it starts.

    Unanswered it would end the process. Call it before the first thread is started.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})


def unblock_sighup() -> None:
    """Take SIGHUP from now on, and one that has waited."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})


def serving_context(
    files: TlsFiles, _config: object, _default: Callable[[], ssl.SSLContext]
) -> ssl.SSLContext:
    """Return the context of a serving process, which reads its files again on SIGHUP.

    uvicorn calls this on the process's event loop, in its main thread.
    """
    context = ReloadableContext(files)
    loop = asyncio.get_running_loop()
    # In a thread: the files may lie where reading takes long, and callers wait.
    read_again = partial(loop.run_in_executor, None, context.reload)
    loop.add_signal_handler(signal.SIGHUP, read_again)
    unblock_sighup()
    return context


def _ask_for_client_certificates(context: ssl.SSLContext, client_ca: Path) -> None:
    """Verify a client's certificate where it shows one; who shows none has a bearer key."""
    _first_certificate(client_ca)
    try:
        context.load_verify_locations(client_ca)
    except (ssl.SSLError, OSError) as error:
        raise ConfigurationError(f"{client_ca} cannot be used: {_reason(error)}") from None
    context.verify_mode = ssl.CERT_OPTIONAL
    # What the operator names is trusted, also where it is an intermediate without its root.
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
    """Say it without OpenSSL's file and line numbers."""
    reason = getattr(error, "reason", None) or error.strerror or "it is not what TLS needs"
    return reason.replace("_", " ").lower()
