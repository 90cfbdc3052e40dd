"""Check the URL of a server before a secret or a picture is sent there.

`client.transport`, `device.intake` and `device.provisioning` call it. It sends nothing.
"""

from urllib.parse import urlsplit

import httpx2

from birthmark_sma.errors import ConfigurationError
from birthmark_sma.http_requests import is_loopback


def check_url(url: str, *, server: str, risk: str, plaintext: bool | None = None) -> None:
    """Raise ConfigurationError unless `url` is https://, or http:// on this machine.

    `server` names its owner in the error, as in "The authority's URL". `risk` is what an attacker
    on the network could do without TLS. `plaintext=True` allows http:// to every host; None means
    that the caller has no such option.
    """
    example = "Give one such as https://sma.example.org."
    try:
        parts = urlsplit(url)
        host, _port = parts.hostname, parts.port
        httpx2.URL(url)
    except (ValueError, TypeError, httpx2.InvalidURL):
        raise ConfigurationError(f"{server}'s URL cannot be read. {example}") from None
    if parts.scheme not in {"https", "http"} or not host:
        raise ConfigurationError(
            f"{server}'s URL must begin with https://, or http:// on this machine, and a host."
            f" {example}"
        )
    if parts.scheme == "http" and not plaintext and not is_loopback(host):
        unless = "" if plaintext is None else " If something else protects it, pass plaintext=True."
        raise ConfigurationError(
            f"Without TLS, an attacker on the network could {risk}. {server}'s URL must begin with"
            f" https://, unless it is on this machine.{unless}"
        )
