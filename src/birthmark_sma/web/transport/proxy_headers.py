"""Parse the proxy headers X-Forwarded-For, X-Forwarded-Proto and Forwarded (RFC 7239).

`client_identity` calls this for each request of a trusted proxy. Each proxy appends the address of
its peer at the right end of the list. So this module reads the list from the right and skips
trusted proxies; the first other address is the client. It must never read further left, because a
client can write anything there to forge its address.
"""

import ipaddress
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple, TypeAlias

Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network
Headers: TypeAlias = Sequence[tuple[bytes, bytes]]

_MAX_ELEMENTS = 16
"""More elements mean a proxy loop, or an attack that tries to use our CPU time."""
_MAX_ELEMENT_CHARACTERS = 512
_REMEMBERED_NODES = 4_096

# node = nodename [ ":" node-port ] (RFC 7239, section 6). X-Forwarded-For also has IPv6 addresses
# without brackets.
_NODE = re.compile(
    r"(?:\[(?P<bracketed>[0-9A-Fa-f:.]{2,45})\]|(?P<v4>[0-9.]{7,15}))(?::(?P<port>[0-9]{1,5}))?"
    r"|(?P<v6>[0-9A-Fa-f:.]{2,45})"
)
# forwarded-pair = token "=" value (RFC 7239, section 4). Escapes in quoted strings are refused,
# because no node or scheme needs them.
_WORD = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_PAIR = re.compile(rf'({_WORD})=(?:"([^"\\]*)"|({_WORD}))')
_SEPARATOR = re.compile(r"[ \t]*;[ \t]*")


class ProxiedClient(NamedTuple):
    """The client that a proxy reports. Port 0 and scheme None mean that they are unknown."""

    address: str
    port: int
    scheme: str | None


class _Node(NamedTuple):
    address: str
    port: int
    trusted: bool


class _MalformedError(Exception):
    """A proxy header is malformed."""


class TrustedProxies:
    """The networks of the proxies whose headers are trusted."""

    def __init__(self, networks: Iterable[Network]) -> None:
        self._networks = tuple(networks)
        self._node = lru_cache(_REMEMBERED_NODES)(self._parse_node)

    def __reduce__(self) -> tuple[type["TrustedProxies"], tuple[tuple[Network, ...]]]:
        """Pickle the networks without the cache, for worker processes."""
        return TrustedProxies, (self._networks,)

    def trusts(self, address: str) -> bool:
        """Return true if an address belongs to a trusted proxy; false for a malformed address."""
        try:
            return self._contains(ipaddress.ip_address(address))
        except ValueError:
            return False

    def origin(self, headers: Headers) -> ProxiedClient | None:
        """Return the client that the nearest proxy reports. Header names must be in lower case.

        Returns None if both headers are missing, if one is malformed, or if they name different
        clients; then the proxy counts as the client. If they differ, the proxy wrote only one of
        them and passed on the other one, which the client may have forged.
        """
        x_for = [value for name, value in headers if name == b"x-forwarded-for"]
        forwarded = [value for name, value in headers if name == b"forwarded"]
        if not x_for and not forwarded:
            return None
        try:
            found = self._from_x_forwarded(x_for) if x_for else None
            if forwarded:
                standard = self._from_forwarded(forwarded)
                if found is not None and found.address != standard.address:
                    return None
                found = found or standard
        except _MalformedError:
            return None
        if found is not None and found.scheme is None:
            found = found._replace(scheme=_scheme_told(headers))
        return found

    def _from_x_forwarded(self, values: Sequence[bytes]) -> ProxiedClient:
        node = None
        for element in _from_the_right(values):
            node = self._node(element)
            if not node.trusted:
                break
        return _origin(node, "")

    def _from_forwarded(self, values: Sequence[bytes]) -> ProxiedClient:
        node, scheme = None, ""
        for element in _from_the_right(values):
            parameters = _parameters(element)
            node = self._node(parameters.get("for", ""))
            scheme = parameters.get("proto", "").lower()
            if not node.trusted:
                break
        return _origin(node, scheme)

    def _parse_node(self, text: str) -> _Node:
        found = _NODE.fullmatch(text)
        if found is None:
            raise _MalformedError
        try:
            address = ipaddress.ip_address(found["bracketed"] or found["v4"] or found["v6"])
        except ValueError:
            raise _MalformedError from None
        port = int(found["port"] or 0)
        if port > 65_535:
            raise _MalformedError
        return _Node(str(_plain(address)), port, self._contains(address))

    def _contains(self, address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
        plain = _plain(address)
        return any(plain in network for network in self._networks)


def _plain(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """Return the IPv4 address of an IPv4-mapped one (::ffff:a.b.c.d), or the address itself.

    An IPv6 socket shows IPv4 clients as IPv4-mapped addresses.
    """
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def _origin(node: _Node | None, scheme: str) -> ProxiedClient:
    if node is None:
        raise _MalformedError
    return ProxiedClient(node.address, node.port, scheme if scheme in {"http", "https"} else None)


def _from_the_right(values: Sequence[bytes]) -> Iterator[str]:
    """Yield the elements of a header list from right to left.

    The list may be spread over several header lines (RFC 9110, section 5.3). A comma in a quoted
    string does not separate elements. Raises _MalformedError for an element of more than
    `_MAX_ELEMENT_CHARACTERS`, unpaired quotes, or more than `_MAX_ELEMENTS` elements.
    """
    seen = 0
    for value in reversed(values):
        text = value.decode("latin-1")
        end = len(text)
        while end >= 0:
            start = _start_of_last(text, end)
            element = text[start:end].strip(" \t")
            end = start - 1
            seen += 1
            if seen > _MAX_ELEMENTS:
                raise _MalformedError
            if element:  # empty elements are ignored (RFC 9110, section 5.6.1)
                yield element


def _start_of_last(text: str, end: int) -> int:
    """Return the index at which the last element of `text[:end]` starts."""
    begin = max(0, end - _MAX_ELEMENT_CHARACTERS)
    position = end
    while True:
        comma = text.rfind(",", begin, position)
        closing = text.rfind('"', max(comma, begin), position)
        if closing < 0:
            if comma < 0 and begin > 0:
                raise _MalformedError
            return comma + 1
        position = text.rfind('"', begin, closing)
        if position < 0:
            raise _MalformedError


def _parameters(element: str) -> dict[str, str]:
    """Return the parameters of a `Forwarded` element, with names in lower case.

    Raises _MalformedError.
    """
    parameters: dict[str, str] = {}
    position = 0
    while position < len(element):
        pair = _PAIR.match(element, position)
        if pair is None:
            raise _MalformedError
        name = pair[1].lower()
        if name in parameters:  # a name may occur once in an element (RFC 7239, section 4)
            raise _MalformedError
        parameters[name] = pair[3] if pair[2] is None else pair[2]
        position = pair.end()
        if position < len(element):
            separator = _SEPARATOR.match(element, position)
            if separator is None:
                raise _MalformedError
            position = separator.end()
    return parameters


def _scheme_told(headers: Headers) -> str | None:
    """Return the last X-Forwarded-Proto value, which the nearest proxy wrote, or None.

    Only http and https are accepted.
    """
    told = [value for name, value in headers if name == b"x-forwarded-proto"]
    if not told:
        return None
    scheme = told[-1].rpartition(b",")[2].strip().lower()
    return scheme.decode() if scheme in {b"http", b"https"} else None
