"""Whom a trusted proxy speaks for: X-Forwarded-For, and Forwarded (RFC 7239).

Each proxy adds, at the right end, the address that it was connected from. So the list is read from
the right for as long as it names trusted proxies; the first other address is the client. What is
further left anybody may have written, and it is never looked at.
"""

import ipaddress
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple, TypeAlias

Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network
Headers: TypeAlias = Sequence[tuple[bytes, bytes]]

_MAX_ELEMENTS = 16
"""A longer way through trusted proxies is a loop, or an attempt to make us read for long."""
_MAX_ELEMENT_CHARACTERS = 512
_REMEMBERED_NODES = 4_096

# node = nodename [ ":" node-port ] (RFC 7239, section 6), and a bare IPv6 address, as
# X-Forwarded-For has it.
_NODE = re.compile(
    r"(?:\[(?P<bracketed>[0-9A-Fa-f:.]{2,45})\]|(?P<v4>[0-9.]{7,15}))(?::(?P<port>[0-9]{1,5}))?"
    r"|(?P<v6>[0-9A-Fa-f:.]{2,45})"
)
# forwarded-pair = token "=" value (RFC 7239, section 4); no escapes: no node or scheme needs any.
_WORD = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_PAIR = re.compile(rf'({_WORD})=(?:"([^"\\]*)"|({_WORD}))')
_SEPARATOR = re.compile(r"[ \t]*;[ \t]*")


class ProxiedClient(NamedTuple):
    """Who sent a request, as far as it is known; no scheme where nobody told it."""

    address: str
    port: int
    scheme: str | None


class _Node(NamedTuple):
    address: str
    port: int
    trusted: bool


class _MalformedError(Exception):
    """What a proxy forwarded cannot be read."""


class TrustedProxies:
    """The proxies whose word is taken."""

    def __init__(self, networks: Iterable[Network]) -> None:
        self._networks = tuple(networks)
        self._node = lru_cache(_REMEMBERED_NODES)(self._parse_node)

    def __reduce__(self) -> tuple[type["TrustedProxies"], tuple[tuple[Network, ...]]]:
        """Travel to worker processes without what is remembered."""
        return TrustedProxies, (self._networks,)

    def trusts(self, address: str) -> bool:
        """Say whether an address is one of theirs."""
        try:
            return self._contains(ipaddress.ip_address(address))
        except ValueError:
            return False

    def origin(self, headers: Headers) -> ProxiedClient | None:
        """Return whom the nearest proxy, a trusted one, speaks for; header names in lower case.

        None where it does not tell, or not clearly: then the proxy itself counts as the sender. So
        it is where the two headers differ, since one of them must be a stranger's that the proxy
        passed on.
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
    """Return the IPv4 address that an IPv6 socket shows as ::ffff:a.b.c.d, or else the same."""
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def _origin(node: _Node | None, scheme: str) -> ProxiedClient:
    if node is None:
        raise _MalformedError
    return ProxiedClient(node.address, node.port, scheme if scheme in {"http", "https"} else None)


def _from_the_right(values: Sequence[bytes]) -> Iterator[str]:
    """Yield the elements of a list that may be spread over several lines (RFC 9110, section 5.3).

    A comma in quotes divides nothing. Raises _MalformedError at an element that is too long, or
    whose quotes are not paired, and where there are too many.
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
            if element:  # an empty one means nothing (RFC 9110, section 5.6.1)
                yield element


def _start_of_last(text: str, end: int) -> int:
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
    """Return the parameters of a `Forwarded` element, names in lower case."""
    parameters: dict[str, str] = {}
    position = 0
    while position < len(element):
        pair = _PAIR.match(element, position)
        if pair is None:
            raise _MalformedError
        name = pair[1].lower()
        if name in parameters:  # each once in an element (RFC 7239, section 4)
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
    """Return what the nearest proxy says of the scheme that it was asked by."""
    told = [value for name, value in headers if name == b"x-forwarded-proto"]
    if not told:
        return None
    scheme = told[-1].rpartition(b",")[2].strip().lower()
    return scheme.decode() if scheme in {b"http", b"https"} else None
