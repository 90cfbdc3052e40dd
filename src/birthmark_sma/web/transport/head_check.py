"""Refuse heads that the HTTP parser accepts, but that a proxy could read differently.

`transport.protocol` calls this once for each request. It must not log or store anything: the caller
is not authenticated yet.
"""

import re

from birthmark_sma.web import problems
from birthmark_sma.web.problems import Problem
from birthmark_sma.web.request_context import Header

_VERSIONS = frozenset({"1.1", "1.0"})
# A host name or an address as DNS and browsers write it. RFC 3986, section 3.2, also allows
# userinfo, escapes and commas, which two programs may read differently.
_HOST = rb"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]*)(?::[0-9]*)?"
_IS_HOST = re.compile(_HOST).fullmatch
_ABSOLUTE = re.compile(rb"https?://(%b)(?=[/?]|$)" % _HOST, re.IGNORECASE)


def check_head(version: str, target: bytes, headers: list[Header]) -> bytes | Problem:
    """Return the target without scheme and host, or the error response to an invalid head.

    The host in an absolute target replaces the Host field in `headers` (RFC 9112, section 3.2.2),
    so all later code reads the same host and the same path.
    """
    hosts = [value for name, value in headers if name == b"host"]
    codings = [value for name, value in headers if name == b"transfer-encoding"]
    if version not in _VERSIONS:
        return problems.HTTP_VERSION
    if len(hosts) > 1 or (not hosts and version == "1.1") or not all(map(_IS_HOST, hosts)):
        return problems.NOT_ONE_HOST
    if codings and (len(codings) > 1 or codings[0].lower() != b"chunked"):
        return problems.TRANSFER_CODING
    if b"#" in target or (codings and version == "1.0"):
        return problems.NOT_HTTP
    return target if target.startswith((b"/", b"*")) else _move_host(target, headers)


def _move_host(target: bytes, headers: list[Header]) -> bytes | Problem:
    """Return the path and the query of an absolute target, and put its host into the headers."""
    absolute = _ABSOLUTE.match(target)
    if absolute is None or not absolute[1]:
        return problems.NOT_HTTP
    headers[:] = [field for field in headers if field[0] != b"host"]
    headers.append((b"host", absolute[1]))
    rest = target[absolute.end() :]
    return rest if rest.startswith(b"/") else b"/" + rest
