"""Check the host of a request, authenticate its caller and check the scope of its access key.

`web.pipeline` calls these two steps for every request. The scope that is needed is that of the
route that matched (`web.routes`).

A key is a bearer token (RFC 6750), or a client certificate that TLS has verified. On the dashboard
it is also the session of a browser that signed in with a key. A credential is checked on an open
server too, so that a client which works on a laptop also works where keys are required.
"""

import ipaddress
import time
from datetime import datetime
from hashlib import sha256
from typing import Any
from urllib.parse import urlsplit

from cryptography import x509

from birthmark_sma.authority.access import sessions
from birthmark_sma.authority.access.cache import AccessKeyCache
from birthmark_sma.authority.access.caller import Caller, keyless_caller
from birthmark_sma.authority.access.store import AccessKey, in_words
from birthmark_sma.config import Access, Settings
from birthmark_sma.errors import InsufficientScopeError, UnauthenticatedError
from birthmark_sma.http_requests import is_loopback
from birthmark_sma.web.problems import MISDIRECTED, RequestError
from birthmark_sma.web.request_context import RequestContext
from birthmark_sma.web.routes import ANYONE, Credentials, Route

_SCHEME = b"bearer "
_KNOWN_HOSTS = 64  # accepted Host values that are remembered; senders choose them
_MAX_ADDRESS_CHARACTERS = 45  # the longest IPv6 address, and the width of the audit trail's column


class Authenticator:
    """Authenticates the caller of a request and checks the scope of its access key."""

    def __init__(self, settings: Settings, key_cache: AccessKeyCache) -> None:
        self._open = settings.resolved_access is Access.OPEN
        self._published = self._open or settings.publish_pki or settings.public_url is not None
        self._key_cache = key_cache
        self._names = _names_of_this_server(settings) if self._open else None
        self.known_hosts: set[bytes | None] = set()
        """Values of Host that `check_host` has accepted: it need not be called for them again."""

    def authenticate(self, context: RequestContext) -> Caller:
        """Return the caller of a request, and set it in the context.

        `web.pipeline` does not call it for a route that ignores credentials.
        Raises UnauthenticatedError or InsufficientScopeError.
        """
        key, address = self._find_key(context), context.address
        if address is not None:
            address = address[:_MAX_ADDRESS_CHARACTERS]
        context.caller = keyless_caller(address) if key is None else Caller(address, key)
        return context.caller

    def check_host(self, context: RequestContext) -> None:
        """Raise RequestError (421) if Host is a name that this server does not have.

        This prevents DNS rebinding: where access is open, a browser on this machine may send
        requests. The page of another site could make its own name resolve to this address, and the
        browser then sends that name as Host. IP addresses are accepted, as they cannot be rebound,
        and so are names without a dot, which no one can register.
        """
        if self._names is None:
            return
        host = (_host_of(context.host or b"") or "").lower()
        if "." in host and not (_is_address(host) or host in self._names):
            raise RequestError(
                MISDIRECTED,
                "Host must be localhost or the address of this server. If the server has"
                " this name, set it with --public-url, or require access keys.",
            )
        if len(self.known_hosts) < _KNOWN_HOSTS:
            self.known_hosts.add(context.host)

    def _find_key(self, context: RequestContext) -> AccessKey | None:
        """Return the key of a request, which is in force and has a scope that the route accepts.

        Return None if the request has no key and needs none. Raises UnauthenticatedError or
        InsufficientScopeError.
        """
        route = context.route
        if self._published and route.credentials is Credentials.IGNORED_IF_PUBLISHED:
            return None
        # A wrong bearer key raises: a session or certificate never takes its place.
        key = self._bearer_key(context) or self._ambient_key(context, route)
        if key is None:
            return None
        if route.scopes is not None and key.scope not in route.scopes:
            raise InsufficientScopeError(
                f"This access key has the scope {key.scope.value}. This path needs the scope"
                f" {in_words(route.scopes)}."
            )
        self._key_cache.note_use(key)
        return key

    def _bearer_key(self, context: RequestContext) -> AccessKey | None:
        """Return the key of the Authorization field, or None without such a field.

        Raises UnauthenticatedError for any other scheme, two fields, or a key not in force.
        """
        shown = context.header_values(b"authorization")
        if not shown:
            return None
        if len(shown) > 1 or shown[0][: len(_SCHEME)].lower() != _SCHEME:
            raise UnauthenticatedError("Send one access key, as: Authorization: Bearer sma_...")
        key = self._key_cache.find_by_secret(shown[0][len(_SCHEME) :].strip().decode("latin-1"))
        if key is None:
            raise UnauthenticatedError("This access key is not known here.")
        _check_in_force(key, self._key_cache.now())
        return key

    def _ambient_key(self, context: RequestContext, route: Route) -> AccessKey | None:
        """Return the key of a session or client certificate, or None if none is needed.

        Browsers and TLS clients send these with every request. So a route for anyone, such as the
        sign-in page, ignores one that is not accepted. Raises UnauthenticatedError on other routes.
        """
        try:
            key = self._session_key(context) or self._certificate_key(context.tls)
            if key is not None:
                _check_in_force(key, self._key_cache.now())
                return key
        except UnauthenticatedError:
            if route.scopes is not ANYONE:
                raise
        if route.scopes is ANYONE:
            return None
        if context.shows_session:
            raise UnauthenticatedError("This session is over. Sign in again.")
        if context.tls is not None and context.tls.get("client_cert_der") is not None:
            raise UnauthenticatedError(
                "No access key belongs to this client certificate. The operator creates one with:"
                " sma keys create --client-cert"
            )
        if not self._open or route.credentials is Credentials.REQUIRED:
            raise UnauthenticatedError(
                "Send an access key: Authorization: Bearer sma_... The operator creates one with:"
                " sma keys create"
            )
        return None

    def _session_key(self, context: RequestContext) -> AccessKey | None:
        """Return the key with which a browser signed in, or None without a session."""
        session = context.session
        return None if session is None else sessions.find_session_key(session, self._key_cache)

    def _certificate_key(self, tls: dict[str, Any] | None) -> AccessKey | None:
        """Return the key of the client certificate, or None without a certificate or key.

        Raises UnauthenticatedError if the certificate has expired. TLS checked that only when the
        connection began, and a connection may last longer.
        """
        if tls is None or tls.get("client_cert_der") is None:
            return None
        der: bytes = tls["client_cert_der"]
        fingerprint = tls.get("client_cert_sha256")
        if fingerprint is None:
            # All requests of a connection share `tls`, so the certificate is parsed once.
            fingerprint = tls["client_cert_sha256"] = sha256(der).digest()
            tls["client_cert_until"] = _end_of(der)
        if time.time() > tls["client_cert_until"]:
            raise UnauthenticatedError("This client certificate has expired, or cannot be read.")
        return self._key_cache.find_by_certificate(fingerprint, der)


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
