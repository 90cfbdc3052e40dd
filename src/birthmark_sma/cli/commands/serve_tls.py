"""Prepare TLS for `sma serve`: check the files, make a local certificate, print curl options.

`commands/serve.py` calls it before the server starts. The TLS code itself is in `web/transport`.
"""

import shlex
import socket
from typing import TYPE_CHECKING

from birthmark_sma.cli.output import print_stderr
from birthmark_sma.errors import ConfigurationError
from birthmark_sma.http_requests import is_loopback

if TYPE_CHECKING:
    from birthmark_sma.config import Settings
    from birthmark_sma.web.transport.local_certificate import LocalCertificate


def check_tls(settings: "Settings") -> None:
    """Check the TLS files before anything is created.

    Print a warning if clients would refuse the certificate, or if other machines reach the server
    without TLS. Raises ConfigurationError or PrivateFileError if files cannot be used.
    """
    from birthmark_sma.web.transport.tls import load_tls, tls_files

    if settings.tls_self and settings.tls_cert is not None:
        raise ConfigurationError("Give either --tls-self, or --tls-cert with --tls-key.")
    files = tls_files(settings)
    if files is not None:
        warning = load_tls(files).warning
        if warning is not None:
            print_stderr(f"WARNING: {warning} Clients refuse it.")
    elif not (is_loopback(settings.host) or settings.tls_self or settings.trusted_proxies):
        print_stderr(
            f"WARNING: there is no TLS on {settings.host}. Others on the network can read and"
            " change requests and answers. Give --tls-cert and --tls-key, or use a proxy with TLS"
            " and name it with --trusted-proxies."
        )


def find_local_certificate(
    settings: "Settings", listener: socket.socket
) -> "tuple[Settings, LocalCertificate | None]":
    """Return settings with this machine's own certificate if --tls-self asks for it.

    Otherwise return the settings unchanged, and None.
    """
    if not settings.tls_self:
        return settings, None
    from birthmark_sma.web.transport.local_certificate import settings_with_local_certificate

    settings, local = settings_with_local_certificate(settings, listener.getsockname()[0])
    if local.new_ca:
        print_stderr(
            f"A local CA was created for TLS. Clients of this server must trust {local.ca_file}."
        )
    return settings, local


def curl_command(url: str, local: "LocalCertificate | None") -> str:
    """Return a command for this machine: it names localhost in place of 0.0.0.0 and [::]."""
    here = url.replace("//0.0.0.0:", "//localhost:").replace("//[::]:", "//localhost:")
    trust = "" if local is None else f"--cacert {shlex.quote(str(local.ca_file))} "
    return f"curl {trust}{here}"
