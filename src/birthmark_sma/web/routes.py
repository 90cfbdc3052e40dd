"""The table of routes: path, methods, scopes, rate limit and presentation of each.

`web.pipeline` looks up the route of each request here. Authentication, rate limit, metrics, cache
headers, navigation and the sandbox all read the `Route` that was found, so they cannot read one
path differently. A path that is not here never reaches an endpoint.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum
from typing import TypeAlias

from birthmark_sma.authority.access.store import KeyScope, at_least
from birthmark_sma.authority.ca.issuers import (
    CA_FILES,
    CRL_PATH,
    INTERMEDIATE_PATH,
    OCSP_PATH,
    ROOT_CRL_PATH,
    ROOT_PATH,
    ROOTS_PATH,
    ROOTS_SIGNATURE_PATH,
)
from birthmark_sma.authority.devices.states import Act
from birthmark_sma.authority.rate_limits.limits import Kind

Scopes: TypeAlias = frozenset[KeyScope] | None
"""The scopes that may use a route. None means that no key is needed; a bearer key that is sent is
checked all the same."""

ANYONE: Scopes = None
ANY_KEY: Scopes = frozenset(KeyScope)
_MONITOR: Scopes = at_least(KeyScope.MONITOR)
READ: Scopes = at_least(KeyScope.READ)
OPERATE: Scopes = at_least(KeyScope.OPERATE)
ADMIN: Scopes = at_least(KeyScope.ADMIN)
_VALIDATE: Scopes = frozenset({KeyScope.VALIDATE})
_PROVISION: Scopes = frozenset({KeyScope.PROVISION})


class Credentials(Enum):
    """The treatment of the credential that a request has."""

    CHECKED = "checked"
    REQUIRED = "required"
    """A server with open access asks for a key too: an act records the name of the key."""
    IGNORED = "ignored"
    """For probes: they have no credential, and a wrong one must not make them fail."""
    IGNORED_IF_PUBLISHED = "ignored if published"
    """Verifiers have no keys. They may fetch certificates and revocation lists if access is open,
    `publish_pki` is set or a public URL is set."""


@dataclass(frozen=True, slots=True, eq=False)
class Route:
    """One path, or all paths that begin with it, and everything that depends on it."""

    path: str
    """It is also the label of the route in metrics and traces. With a `tail`, a directory, or a
    path that ends with a parameter in braces."""
    scopes: Scopes = ANY_KEY
    methods: tuple[str, ...] = ("GET",)
    limit: Kind | None = Kind.ADMIN
    """The rate limit for `methods`. Any other method counts as ADMIN, unless there is no limit."""
    credentials: Credentials = Credentials.CHECKED
    tail: re.Pattern[bytes] | None = None
    """If not None, the route has all paths that begin with `prefix` and go on with this pattern.
    Several routes may match a path: the first one that has the method of the request counts."""
    aliases: tuple[str, ...] = ()
    """Other paths of the same route."""
    cacheable: bool = False
    """Caches may store the response. It has no Cache-Control unless the endpoint sets one."""
    traced: bool = True
    batch: bool = False
    """The endpoint takes one unit of the limit for each element of the body, once it knows them."""
    dashboard: bool = False
    """Browsers use it: it accepts sessions of the dashboard, and shows problems as pages."""
    navigation: str | None = None
    """The title in the navigation of the dashboard."""

    @property
    def prefix(self) -> bytes:
        """The beginning of the paths of a route with a `tail`."""
        directory, brace, _ = self.path.partition("{")
        return (directory if brace else f"{self.path}/").encode()


# File names without escapes, empty segments or segments such as "..", which leave the directory.
_FILE = re.compile(rb"(?:[A-Za-z0-9_-][A-Za-z0-9._-]*/)*[A-Za-z0-9_-][A-Za-z0-9._-]*")
# The base64 of a SEQUENCE, whose characters may be percent-encoded. Nothing else is encoded, and so
# no control character.
_OCSP_REQUEST = re.compile(
    rb"(?:M|%4[Dd])(?:[A-Za-z0-9+/=]|%(?:2[BbFf]|3[0-9Dd]|[46][1-9A-Fa-f]|[57][0-9Aa]))*"
)
# A segment that is decoded by the endpoint (RFC 3986, section 3.3). No control character is in it,
# encoded or not (C0, DEL, and C1 as UTF-8), and each % begins an escape.
_SEGMENT = (
    r"(?:[A-Za-z0-9._~!$&'()*+,;=:@-]"
    r"|(?!%[Cc]2%[89])%(?:[2-6][0-9A-Fa-f]|7[0-9A-Ea-e]|[89A-Fa-f][0-9A-Fa-f]))+"
)
# The id of a certificate (RFC 9773): two texts in base64url. No key identifier is longer than
# SHA-512's, and no serial number has more than 20 octets.
_CERTIFICATE_ID = re.compile(rb"[A-Za-z0-9_-]{1,86}\.[A-Za-z0-9_-]{1,28}")


def _validation(path: str, *, batch: bool = False) -> Route:
    return Route(path, _VALIDATE, ("POST",), Kind.VALIDATE, batch=batch)


def _withdrawn(path: str) -> Route:
    return Route(path, _VALIDATE, ("POST",))


def _probe(path: str) -> Route:
    return Route(path, ANYONE, limit=None, credentials=Credentials.IGNORED, traced=False)


def _pki(path: str) -> Route:
    return Route(path, credentials=Credentials.IGNORED_IF_PUBLISHED, cacheable=True)


def _documentation(path: str, navigation: str | None = None) -> Route:
    return Route(path, dashboard=True, navigation=navigation)


def _page(path: str, navigation: str | None = None) -> Route:
    return Route(path, READ, dashboard=True, navigation=navigation)


def _administration(path: str, scopes: Scopes, methods: tuple[str, ...] = ("GET",)) -> Route:
    """Return a route of the administration API. A parameter in the path is one segment."""
    _, brace, end = path.partition("}")
    tail = re.compile((_SEGMENT + end).encode()) if brace else None
    acts = "POST" in methods
    credentials = Credentials.REQUIRED if acts else Credentials.CHECKED
    return Route(path, scopes, methods, credentials=credentials, tail=tail)


def _acting_page(path: str, scopes: Scopes) -> Route:
    methods = ("GET", "POST")
    return Route(path, scopes, methods, credentials=Credentials.REQUIRED, dashboard=True)


PROVISION = Route("/api/v1/devices/provision", _PROVISION, ("POST",), Kind.PROVISION)
RENEW = Route("/api/v1/devices/renew", ANYONE, ("POST",))
RENEWAL_INFO = Route("/api/v1/devices/renewal-info/{certificate_id}", ANYONE, tail=_CERTIFICATE_ID)
VALIDATE = _validation("/api/v1/validate/nuc")
VALIDATE_BATCH = _validation("/api/v1/validate/nuc/batch", batch=True)
VALIDATE_PUBLISHED = _validation("/validate")
VALIDATE_LEGACY = _validation("/validate-legacy")
LIVE = _probe("/health/live")
READY = _probe("/health/ready")
CRL = _pki(CRL_PATH)
CA_FILE = replace(_pki(f"{CA_FILES}/{{file}}"), tail=_FILE)
OCSP = replace(
    _pki(OCSP_PATH), methods=("GET", "POST"), limit=None, aliases=(OCSP_PATH.rstrip("/"),)
)
"""The endpoint limits only the responses that need a signature of their own."""
OCSP_GET = replace(_pki(f"{OCSP_PATH}{{request}}"), limit=None, tail=_OCSP_REQUEST)
DASHBOARD = _page("/dashboard", "Overview")
SIGN_IN = Route("/dashboard/sign-in", ANYONE, ("GET", "POST"), dashboard=True)
SIGN_OUT = Route("/dashboard/sign-out", READ, ("POST",), dashboard=True)
DASHBOARD_FILES = Route("/dashboard/static", ANYONE, tail=_FILE, dashboard=True)
DEVICE_ACT = _acting_page("/dashboard/devices/act", OPERATE)
RE_ENROLMENT = _acting_page("/dashboard/device/re-enrolment", OPERATE)
FLAG_PAGE = _page("/dashboard/flags", "Flags")
FLAG_REVIEW = _acting_page("/dashboard/flags/review", OPERATE)
KEY_CREATION = _acting_page("/dashboard/keys/create", ADMIN)
KEY_ROTATION = _acting_page("/dashboard/keys/rotate", ADMIN)
KEY_REVOCATION = _acting_page("/dashboard/keys/revoke", ADMIN)
DOCS = _documentation("/docs", "API")
REDOC = _documentation("/redoc", "ReDoc")
SANDBOX = Route("/sandbox")
_DOCUMENTATION_FILES = Route("/static-offline-docs", tail=_FILE, cacheable=True, dashboard=True)

_OF_DEVICE = "/api/v1/devices/{serial}"
DEVICES = _administration("/api/v1/devices", READ)
DEVICE = _administration(_OF_DEVICE, READ)
DEVICES_BULK = _administration("/api/v1/devices/bulk", OPERATE, ("POST",))
RE_ENROL = _administration(f"{_OF_DEVICE}/re-enrol", OPERATE, ("POST",))
SUSPEND, REINSTATE, REVOKE, RETIRE = (
    _administration(f"{_OF_DEVICE}/{act.value}", OPERATE, ("POST",)) for act in Act
)
KEYS = _administration("/api/v1/keys", ADMIN, ("GET", "POST"))
KEY = _administration("/api/v1/keys/{key}", ADMIN)
ROTATE_KEY = _administration("/api/v1/keys/{key}/rotate", ADMIN, ("POST",))
REVOKE_KEY = _administration("/api/v1/keys/{key}/revoke", ADMIN, ("POST",))
FLAGS = _administration("/api/v1/flags", READ)
REVIEW_FLAGS = _administration("/api/v1/flags/review", OPERATE, ("POST",))
VALIDATIONS = _administration("/api/v1/validations", READ)
VALIDATION = _administration("/api/v1/validations/{request_id}", READ)
KEY_TABLES = _administration("/api/v1/tables", READ)
KEY_TABLE = _administration("/api/v1/tables/{table_id}", READ)
ISSUERS = _administration("/api/v1/issuers", ADMIN)
ACTS = _administration("/api/v1/acts", READ)
ACT = _administration("/api/v1/acts/{act_id}", READ)
STATISTICS = _administration("/api/v1/statistics", _MONITOR)

UNKNOWN = Route("unknown")
"""The route of every path that does not exist. Any valid key gets 404. A caller without a key gets
401, as for an existing path, and so cannot find out which paths exist."""

UNKNOWN_PAGE = Route(UNKNOWN.path, dashboard=True)
"""UNKNOWN, for paths below that of the dashboard."""

TABLE = (
    Route("/", ANYONE),
    PROVISION,
    RENEW,
    RENEWAL_INFO,
    VALIDATE,
    VALIDATE_BATCH,
    DEVICES,
    DEVICE,
    DEVICES_BULK,
    SUSPEND,
    REINSTATE,
    REVOKE,
    RETIRE,
    RE_ENROL,
    KEYS,
    KEY,
    ROTATE_KEY,
    REVOKE_KEY,
    FLAGS,
    REVIEW_FLAGS,
    VALIDATIONS,
    VALIDATION,
    KEY_TABLES,
    KEY_TABLE,
    ISSUERS,
    ACTS,
    ACT,
    STATISTICS,
    DASHBOARD,
    _page("/dashboard/devices", "Devices"),
    FLAG_PAGE,
    _page("/dashboard/validations", "Validations"),
    _page("/dashboard/tables", "Key tables"),
    _page("/dashboard/certificates", "Certificates"),
    _page("/dashboard/callers", "Callers"),
    _page("/dashboard/acts", "Acts"),
    _page("/dashboard/health", "Health"),
    _page("/dashboard/health/findings"),
    _page("/dashboard/act"),
    _page("/dashboard/acts.jsonl"),
    DEVICE_ACT,
    RE_ENROLMENT,
    FLAG_REVIEW,
    KEY_CREATION,
    KEY_ROTATION,
    KEY_REVOCATION,
    _page("/dashboard/certificates/download"),
    _page("/dashboard/device"),
    _page("/dashboard/device/certificate"),
    _page("/dashboard/validation"),
    _page("/dashboard/figures"),
    _page("/dashboard/validations.csv"),
    _page("/dashboard/validations.jsonl"),
    SIGN_IN,
    SIGN_OUT,
    DASHBOARD_FILES,
    DOCS,
    _documentation("/docs/oauth2-redirect"),
    Route("/health", ANYONE, traced=False),
    LIVE,
    READY,
    Route("/metrics", _MONITOR, traced=False),
    _documentation("/openapi.json"),
    CA_FILE,
    CRL,
    _pki(INTERMEDIATE_PATH),
    OCSP,
    OCSP_GET,
    _pki(ROOT_CRL_PATH),
    _pki(ROOT_PATH),
    _pki(ROOTS_PATH),
    _pki(ROOTS_SIGNATURE_PATH),
    REDOC,
    SANDBOX,
    _DOCUMENTATION_FILES,
    Route("/stats", _MONITOR),
    VALIDATE_PUBLISHED,
    _withdrawn("/validate-cert"),
    _withdrawn("/validate-cert-legacy"),
    VALIDATE_LEGACY,
)
"""All routes. The dashboard's navigation has the order of this table."""

ROUTES: Mapping[str, Route] = {route.path: route for route in TABLE}

BY_RAW_PATH: Mapping[bytes, Route] = {
    path.encode(): route for route in TABLE for path in (route.path, *route.aliases)
}
"""The routes by their path as it is sent, without decoding. A fixed path has no other spelling."""
_TAILED = tuple((route.prefix, route.tail, route) for route in TABLE if route.tail is not None)
_PAGES = f"{DASHBOARD.path}/".encode()


def find_route(raw_path: bytes, method: str) -> Route:
    """Return the route of a path and method.

    If the path has no route with this method, return the first route of the path; without one,
    UNKNOWN or UNKNOWN_PAGE. `web.request_context` looks up most requests in BY_RAW_PATH itself.
    """
    found = find_routes(raw_path)
    wanted = "GET" if method == "HEAD" else method
    for route in found:
        if wanted in route.methods:
            return route
    if found:
        return found[0]
    return UNKNOWN_PAGE if raw_path.startswith(_PAGES) else UNKNOWN


def find_routes(raw_path: bytes) -> list[Route]:
    """Return all routes of a path, the fixed one first: `bulk` may also be the name of a device."""
    fixed = BY_RAW_PATH.get(raw_path)
    found = [] if fixed is None else [fixed]
    for prefix, tail, route in _TAILED:
        if raw_path.startswith(prefix) and tail.fullmatch(raw_path, len(prefix)):
            found.append(route)
    return found
