"""Check and convert the values of settings that a type does not describe: URLs, networks, rates.

`settings.py` names these functions as the validators of its fields. They raise ValueError, which
pydantic reports with the name of the setting. A message must never show a value that may be secret.
"""

import ipaddress
from typing import Any
from urllib.parse import urlsplit

from pydantic import SecretStr

from birthmark_sma.rates import parse_rates

_DEFAULT_PORTS = {"http": 80, "https": 443}


def check_url(value: str | None) -> str | None:
    """Return a plain http or https URL, without a slash at its end."""
    if value is None:
        return None
    parts = urlsplit(value)
    plain = value.isascii() and value.isprintable() and " " not in value
    if not (plain and parts.scheme in {"http", "https"} and parts.hostname):
        raise ValueError("give a plain http:// or https:// URL with a host")
    if parts.query or parts.fragment or parts.username:
        raise ValueError("leave out query, fragment and user")
    return value.rstrip("/")


def add_traces_path(value: str | None) -> str | None:
    """Return the URL of a collector, with the usual path of OTLP over HTTP if it has none."""
    url = check_url(value)
    return f"{url}/v1/traces" if url and not urlsplit(url).path else url


def parse_networks(value: Any) -> Any:
    """Return addresses and networks from a list, or from a text with commas."""
    listed = value.split(",") if isinstance(value, str) else value
    texts = isinstance(listed, list | tuple) and all(isinstance(each, str) for each in listed)
    if not texts:
        raise ValueError("give a list of addresses and networks")
    try:
        networks = tuple(ipaddress.ip_network(each.strip()) for each in listed if each.strip())
    except ValueError as error:
        raise ValueError(f"{error}; give addresses and networks, as in 10.0.0.0/8") from None
    # With 0.0.0.0/0 every client could claim any address in a header.
    if any(network.prefixlen == 0 for network in networks):
        raise ValueError("it trusts every address; name the proxies")
    return networks


def check_rates(value: str | None) -> str | None:
    """Return a rate limit that can be parsed."""
    if value is not None:
        parse_rates(value)
    return value


def check_redis_url(value: SecretStr | None) -> SecretStr | None:
    """Return the URL of a Redis."""
    if value is not None:
        try:
            parts = urlsplit(value.get_secret_value())
            usable = parts.scheme in {"redis", "rediss"} and bool(parts.hostname)
            usable = usable and (parts.port is None or parts.port > 0)
        except ValueError:
            usable = False
        if not usable:
            raise ValueError("give a URL such as redis://host:6379/0, or rediss:// for TLS")
    return value


def split_list(value: object) -> object:
    """Return the parts of a text with commas. Another value stays as it is."""
    if isinstance(value, str):
        return tuple(each.strip() for each in value.split(",") if each.strip())
    return value


def check_origins(value: tuple[str, ...]) -> tuple[str, ...]:
    """Return origins, each as browsers serialise it (RFC 6454, section 6.2)."""
    if not all(_is_origin(each) for each in value):
        raise ValueError(
            "give origins as browsers write them, such as https://app.example.org or"
            " http://localhost:3000, without a path; * and null are not origins"
        )
    return value


def _is_origin(text: str) -> bool:
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


def check_passphrase(value: SecretStr | None) -> SecretStr | None:
    """Return a passphrase of 1 to 1023 bytes."""
    if value is not None and not 1 <= len(value.get_secret_value().encode()) <= 1023:
        raise ValueError("give a passphrase of 1 to 1023 bytes")
    return value
