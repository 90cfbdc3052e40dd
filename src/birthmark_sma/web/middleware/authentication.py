"""Find the route of a request, authenticate its caller and check the scope.

`web.api.validate` calls the Authenticator for every request. `route_name` reads the path once per
request, undecoded. Scope, rate limit, metrics and endpoint are all chosen by its result, so they
cannot read one path differently. A path that is no route never reaches FastAPI: an authenticated
caller gets 404, other callers get 401 where keys are required.

A key is a bearer token (RFC 6750), or a client certificate that TLS has verified. On the dashboard
it is also the session of a browser that signed in with a key. A credential is checked on an open
server too, so that a client which works on a laptop also works where keys are required.
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
from birthmark_sma.config import Access, Settings
from birthmark_sma.errors import InsufficientScopeError, UnauthenticatedError
from birthmark_sma.http_requests import is_loopback
from birthmark_sma.web.problems import MISDIRECTED, RequestError

Rule: TypeAlias = frozenset[KeyScope] | None
"""The scopes that may use a route. None means that no key is needed; a bearer key that is sent is
checked all the same."""

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
"""One entry per route: a path, or a directory of files. Every other path is `UNKNOWN`."""

UNKNOWN = "unknown"
"""The route of every path that does not exist. Any valid key gets 404. A caller without a key gets
401, as for an existing path, and so cannot find out which paths exist."""

PROBES = frozenset({"/health/live", "/health/ready"})
"""Routes that ignore credentials. Probes have none, and a wrong one must not make them fail."""

PUBLISHED = frozenset({CRL_PATH, INTERMEDIATE_PATH, ROOT_CRL_PATH, ROOT_PATH})
"""Routes that ignore credentials if access is open, `publish_pki` is set or a public URL is set.
Verifiers fetch certificates and revocation lists, and have no keys."""

_DIRECTORIES = ("/dashboard/static/", "/static-offline-docs/")
# File names without escapes, empty segments or segments such as "..", which leave the directory.
_FILE = re.compile(r"(?:[A-Za-z0-9_-][A-Za-z0-9._-]*/)*[A-Za-z0-9_-][A-Za-z0-9._-]*")
_ROUTE = "birthmark_route"

SESSION = "dashboard_session"
"""The key in the scope for the session of a request. `dashboard.session_middleware` sets it: to
None if the session of the cookie is unknown or over, and not at all without a cookie."""

_SCHEME = b"bearer "
_KNOWN_HOSTS = 64  # accepted Host values that are remembered; senders choose them
_MAX_ADDRESS_CHARACTERS = 45  # the longest IPv6 address, and the width of the audit trail's column


def rule_for_route(route: str) -> Rule:
    """Return the scopes that may use a route. UNKNOWN requires a key of any scope."""
    return RULES.get(route, ANY_KEY)


def route_name(scope: Scope) -> str:
    """Return the route of a request: an entry of RULES, or UNKNOWN.

    The path is matched as it was sent, without decoding. No route needs an escape, so a path with
    an escape, such as an encoded control character, is UNKNOWN. The result is kept in the scope.
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
    """Authenticates the caller of a request and checks the scope of its access key."""

    def __init__(self, settings: Settings, key_cache: AccessKeyCache) -> None:
        self._open = settings.resolved_access is Access.OPEN
        self._published = self._open or settings.publish_pki or settings.public_url is not None
        self._key_cache = key_cache
        self._names = _names_of_this_server(settings) if self._open else None
        self._known_hosts: set[bytes] = set()

    def authenticate(self, scope: Scope) -> Caller:
        """Return the caller of a request, and put it into the scope as `caller`.

        Raises UnauthenticatedError, InsufficientScopeError, or RequestError if access is open and
        Host names another server (`_check_host`).
        """
        client = scope["client"]
        address = None if client is None else client[0][:_MAX_ADDRESS_CHARACTERS]
        if self._names is not None:
            self._check_host(scope)
        caller = Caller(address, self._key_for(scope))
        scope["caller"] = caller
        return caller

    def _key_for(self, scope: Scope) -> AccessKey | None:
        """Return the key of a request, which is in force and has a scope that the route accepts.

        Return None if the request has no key and needs none. Raises UnauthenticatedError or
        InsufficientScopeError.
        """
        route = route_name(scope)
        if route in PROBES or (self._published and route in PUBLISHED):
            return None
        rule = rule_for_route(route)
        # A wrong bearer key raises: a session or certificate never takes its place.
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
        """Return the key of the Authorization field, or None without such a field.

        Raises UnauthenticatedError for any other scheme, two fields, or a key not in force.
        """
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
        """Return the key of a session or client certificate, or None if none is needed.

        Browsers and TLS clients send these with every request. So a route for anyone, such as the
        sign-in page, ignores one that is not accepted. Raises UnauthenticatedError on other routes.
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
        """Return the key with which a browser signed in, or None without a session.

        Only requests for the dashboard have a session in their scope.
        """
        session = scope.get(SESSION)
        return None if session is None else sessions.find_session_key(session, self._key_cache)

    def _key_of_certificate(self, scope: Scope) -> AccessKey | None:
        """Return the key of the client certificate, or None without a certificate or key.

        Raises UnauthenticatedError if the certificate has expired. TLS checked that only when the
        connection began, and a connection may last longer.
        """
        tls: dict[str, Any] = scope.get("extensions", {}).get("tls", {})
        der = tls.get("client_cert_der")
        if der is None:
            return None
        fingerprint = tls.get("client_cert_sha256")
        if fingerprint is None:
            # All requests of a connection share `tls`, so the certificate is parsed once.
            fingerprint = tls["client_cert_sha256"] = sha256(der).digest()
            tls["client_cert_until"] = _end_of(der)
        if time.time() > tls["client_cert_until"]:
            raise UnauthenticatedError("This client certificate has expired, or cannot be read.")
        return self._key_cache.find_by_certificate(fingerprint, der)

    def _check_host(self, scope: Scope) -> None:
        """Raise RequestError (421) if Host is a name that this server does not have.

        This prevents DNS rebinding: where access is open, a browser on this machine may send
        requests. The page of another site could make its own name resolve to this address, and the
        browser then sends that name as Host. IP addresses are accepted, as they cannot be rebound,
        and so are names without a dot, which no one can register.
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
    """Return the end of a certificate's validity in seconds since 1970; 0 if it is unreadable."""
    try:
        return x509.load_der_x509_certificate(der).not_valid_after_utc.timestamp()
    except ValueError:
        return 0.0


def _check_in_force(key: AccessKey, now: datetime) -> None:
    # Only a caller that has the secret or the certificate gets these messages, so they do not help
    # an attacker who guesses keys.
    if key.revoked_at is not None:
        raise UnauthenticatedError("This access key was revoked.")
    if not key.is_good(now):
        raise UnauthenticatedError("This access key has expired.")


def _names_of_this_server(settings: Settings) -> frozenset[str] | None:
    """Return the names that Host may have, or None if the server listens on other interfaces.

    Then its names cannot be known, and Host is not checked.
    """
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
