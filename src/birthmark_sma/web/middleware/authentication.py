"""Find the route of a request, authenticate its caller and check the scope.

`route_name` reads the path, undecoded, once a request. Scope, rate limit, metrics and the endpoint
are chosen by its result, so no two of them can read one path differently. A path that is no route
is 404 for every caller and never reaches FastAPI.

A key comes as a bearer token (RFC 6750), or as a client certificate that TLS has verified; on the
dashboard, also as the session of a browser that signed in with one. A credential that is shown is
checked on an open server too: what works on a laptop then works where keys are required.
"""

import ipaddress
import re
import time
from collections.abc import Mapping
from datetime import datetime
from hashlib import sha256
from typing import Any, TypeAlias
from urllib.parse import urlsplit

from cryptography import x509
from starlette.types import Scope

from birthmark_sma.authority.access import sessions
from birthmark_sma.authority.access.cache import AccessKeyCache
from birthmark_sma.authority.access.caller import Caller
from birthmark_sma.authority.access.store import AccessKey, KeyScope
from birthmark_sma.authority.authority import (
    CRL_PATH,
    INTERMEDIATE_PATH,
    ROOT_CRL_PATH,
    ROOT_PATH,
)
from birthmark_sma.config import Access, Settings, is_loopback
from birthmark_sma.errors import InsufficientScopeError, UnauthenticatedError
from birthmark_sma.web.problems import MISDIRECTED, RequestError

Rule: TypeAlias = frozenset[KeyScope] | None
"""The scopes whose keys open a route; None is for anyone, and a key that is shown is checked."""

ANYONE: Rule = None
ANY_KEY: Rule = frozenset(KeyScope)
ADMIN: Rule = frozenset({KeyScope.ADMIN})

_VALIDATE: Rule = frozenset({KeyScope.VALIDATE})

RULES: Mapping[str, Rule] = {
    "/": ANYONE,
    "/api/v1/devices/provision": frozenset({KeyScope.PROVISION}),
    "/api/v1/validate/nuc": _VALIDATE,
    "/api/v1/validate/nuc/batch": _VALIDATE,
    "/dashboard": ADMIN,
    "/dashboard/callers": ADMIN,
    "/dashboard/certificates": ADMIN,
    "/dashboard/certificates/download": ADMIN,
    "/dashboard/device": ADMIN,
    "/dashboard/device/certificate": ADMIN,
    "/dashboard/devices": ADMIN,
    "/dashboard/figures": ADMIN,
    "/dashboard/sign-in": ANYONE,
    "/dashboard/sign-out": ADMIN,
    "/dashboard/static": ANYONE,
    "/dashboard/tables": ADMIN,
    "/dashboard/validations": ADMIN,
    "/dashboard/validations.csv": ADMIN,
    "/dashboard/validations.jsonl": ADMIN,
    "/docs": ANY_KEY,
    "/docs/oauth2-redirect": ANY_KEY,
    "/health": ANY_KEY,
    "/health/live": ANYONE,
    "/health/ready": ANYONE,
    "/metrics": ADMIN,
    "/openapi.json": ANY_KEY,
    CRL_PATH: ANY_KEY,
    INTERMEDIATE_PATH: ANY_KEY,
    ROOT_CRL_PATH: ANY_KEY,
    ROOT_PATH: ANY_KEY,
    "/redoc": ANY_KEY,
    "/sandbox": ANY_KEY,
    "/static-offline-docs": ANY_KEY,
    "/stats": ADMIN,
    "/validate": _VALIDATE,
    "/validate-cert": _VALIDATE,
    "/validate-cert-legacy": _VALIDATE,
    "/validate-legacy": _VALIDATE,
}
"""One entry a route: a path, or a directory of files. Every other path is `UNKNOWN`."""

UNKNOWN = "unknown"
"""The route of a path that does not exist. Any key is told so; who shows none learns nothing."""

PROBES = frozenset({"/health/live", "/health/ready"})
"""Routes that ignore credentials: probes have none, and must not depend on them."""

PUBLISHED = frozenset({CRL_PATH, INTERMEDIATE_PATH, ROOT_CRL_PATH, ROOT_PATH})
"""Routes that ignore credentials where the settings publish them: verifiers have no keys."""

_DIRECTORIES = ("/dashboard/static/", "/static-offline-docs/")
# Names of files that are there to be found: no escapes, no empty segment, nothing like "..".
_FILE = re.compile(r"(?:[A-Za-z0-9_-][A-Za-z0-9._-]*/)*[A-Za-z0-9_-][A-Za-z0-9._-]*")
_ROUTE = "birthmark_route"

SESSION = "dashboard_session"
"""Where in the scope the dashboard's gate puts the session of a request for one of its pages: None
for a cookie whose session is unknown or over, and nothing where no cookie was shown."""

_SCHEME = b"bearer "
_KNOWN_HOSTS = 64
_MAX_ADDRESS_CHARACTERS = 45


def rule_for_route(route: str) -> Rule:
    """Return the rule of a route."""
    return RULES.get(route, ANY_KEY)


def route_name(scope: Scope) -> str:
    """Return the route of a request: an entry of RULES, or UNKNOWN.

    The path is matched as it was sent. No route has a character that needs an escape, so a path
    with one, an encoded control character included, matches nothing.
    """
    route: str | None = scope.get(_ROUTE)
    if route is None:
        route = scope[_ROUTE] = _find_route(scope["raw_path"].decode("latin-1"))
    return route


def _find_route(path: str) -> str:
    if path in RULES:
        return path
    for directory in _DIRECTORIES:
        if path.startswith(directory) and _FILE.fullmatch(path, len(directory)):
            return directory.rstrip("/")
    return UNKNOWN


class Authenticator:
    """Lets callers in, or says why not."""

    def __init__(self, settings: Settings, key_cache: AccessKeyCache) -> None:
        self._open = settings.resolved_access is Access.OPEN
        self._published = self._open or settings.publish_pki or settings.public_url is not None
        self._key_cache = key_cache
        self._names = _names_of_this_server(settings) if self._open else None
        self._known_hosts: set[bytes] = set()

    def authenticate(self, scope: Scope) -> Caller:
        """Authenticate a request, note its caller in the scope, and return the caller.

        Raises UnauthenticatedError, InsufficientScopeError, or RequestError where a page of another
        site sends a browser here under that site's name.
        """
        client = scope["client"]
        address = None if client is None else client[0][:_MAX_ADDRESS_CHARACTERS]
        if self._names is not None:
            self._check_host(scope)
        caller = Caller(address, self._key_for(scope))
        scope["caller"] = caller
        return caller

    def _key_for(self, scope: Scope) -> AccessKey | None:
        """Return the key that a request shows, in force and of the right scope; None without one.

        Raises UnauthenticatedError or InsufficientScopeError.
        """
        route = route_name(scope)
        if route in PROBES or (self._published and route in PUBLISHED):
            return None
        rule = rule_for_route(route)
        key = self._bearer_key(scope) or self._ambient_key(scope, rule)
        if key is None:
            return None
        if rule is not None and key.scope not in rule:
            raise InsufficientScopeError(
                f"This access key is good for {key.scope.value}; here one for"
                f" {' or '.join(sorted(rule))} is needed."
            )
        self._key_cache.note_use(key)
        return key

    def _bearer_key(self, scope: Scope) -> AccessKey | None:
        """Return the key of the Authorization field, or None without such a field."""
        shown = [value for name, value in scope["headers"] if name == b"authorization"]
        if not shown:
            return None
        if len(shown) > 1 or shown[0][: len(_SCHEME)].lower() != _SCHEME:
            raise UnauthenticatedError("Show one access key, as: Authorization: Bearer sma_...")
        key = self._key_cache.find_by_secret(shown[0][len(_SCHEME) :].strip().decode("latin-1"))
        if key is None:
            raise UnauthenticatedError("This access key is not known here.")
        _check_in_force(key, self._key_cache.now())
        return key

    def _ambient_key(self, scope: Scope, rule: Rule) -> AccessKey | None:
        """Return the key of a session or client certificate, or None where none is needed.

        Browsers and TLS send these by themselves, so a page for anyone, such as the page to sign
        in, takes a bad one for none. Raises UnauthenticatedError.
        """
        try:
            key = self._key_of_session(scope) or self._key_of_certificate(scope)
            if key is not None:
                _check_in_force(key, self._key_cache.now())
                return key
        except UnauthenticatedError:
            if rule is not ANYONE:
                raise
        if rule is ANYONE:
            return None
        tls: dict[str, Any] = scope.get("extensions", {}).get("tls", {})
        if SESSION in scope:
            raise UnauthenticatedError("This session is over. Sign in again.")
        if tls.get("client_cert_der") is not None:
            raise UnauthenticatedError(
                "No access key belongs to this client certificate. The operator makes one with:"
                " sma keys create --client-cert"
            )
        if not self._open:
            raise UnauthenticatedError(
                "Show an access key: Authorization: Bearer sma_... The operator makes one with:"
                " sma keys create"
            )
        return None

    def _key_of_session(self, scope: Scope) -> AccessKey | None:
        """Find the key of a browser that is signed in, which opens the dashboard alone."""
        session = scope.get(SESSION)
        return None if session is None else sessions.find_session_key(session, self._key_cache)

    def _key_of_certificate(self, scope: Scope) -> AccessKey | None:
        """Find the key of the certificate that the client showed.

        Fingerprint and end are noted once a connection. TLS looked at the end when it began, and a
        connection may last for long.
        """
        tls: dict[str, Any] = scope.get("extensions", {}).get("tls", {})
        der = tls.get("client_cert_der")
        if der is None:
            return None
        fingerprint = tls.get("client_cert_sha256")
        if fingerprint is None:
            fingerprint = tls["client_cert_sha256"] = sha256(der).digest()
            tls["client_cert_until"] = _end_of(der)
        if time.time() > tls["client_cert_until"]:
            raise UnauthenticatedError("This client certificate has expired, or cannot be read.")
        return self._key_cache.find_by_certificate(fingerprint, der)

    def _check_host(self, scope: Scope) -> None:
        """Refuse a request whose Host is a name that this server does not have.

        Where access is open, anything on this machine may ask, a browser included. A page of
        another site could have its own name resolve to this address (DNS rebinding); then the
        browser sends that name. An address cannot be taken over like that, nor a name without a
        dot, which nobody can register.
        """
        for name, value in scope["headers"]:
            if name == b"host" and value not in self._known_hosts:
                host = (_host_of(value) or "").lower()
                if "." in host and not (_is_address(host) or host in (self._names or ())):
                    raise RequestError(
                        MISDIRECTED,
                        "This authority answers to localhost and to its address, not to this name."
                        " Give the name that it has as --public-url, or let callers show keys.",
                    )
                if len(self._known_hosts) < _KNOWN_HOSTS:
                    self._known_hosts.add(value)


def _end_of(der: bytes) -> float:
    """Return when a certificate ends, in seconds since 1970; 0 where nobody can tell."""
    try:
        return x509.load_der_x509_certificate(der).not_valid_after_utc.timestamp()
    except ValueError:
        return 0.0


def _check_in_force(key: AccessKey, now: datetime) -> None:
    # Whoever holds the secret may be told this: to guess does not lead here.
    if key.revoked_at is not None:
        raise UnauthenticatedError("This access key was revoked.")
    if not key.is_good(now):
        raise UnauthenticatedError("This access key has expired.")


def _names_of_this_server(settings: Settings) -> frozenset[str] | None:
    """The names that a Host may have, or None where they cannot be known."""
    if not is_loopback(settings.host):
        return None
    public = urlsplit(settings.public_url or "").hostname
    return frozenset({settings.host.lower(), public or settings.host.lower()})


def _host_of(value: bytes) -> str | None:
    try:
        return urlsplit("//" + value.decode("ascii")).hostname
    except ValueError:
        return None


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
