"""Whom a trusted proxy speaks for, without a server."""

import ipaddress
import pickle
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from birthmark_sma.web.transport.proxy_headers import ProxiedClient, TrustedProxies

PROXIES = TrustedProxies(
    [
        ipaddress.ip_network("10.0.0.0/8"),
        ipaddress.ip_network("192.0.2.7/32"),
        ipaddress.ip_network("2001:db8:1::/48"),
    ]
)
X_FOR = b"x-forwarded-for"
FORWARDED = b"forwarded"
CLIENT = "203.0.113.9"


def address(*headers: tuple[bytes, bytes]) -> str | None:
    """The address that is found, or None where the proxy itself counts."""
    origin = PROXIES.origin([(b"host", b"sma"), *headers])
    return None if origin is None else origin.address


@pytest.mark.parametrize(
    ("peer", "trusted"),
    [
        ("10.1.2.3", True),
        ("11.1.2.3", False),
        ("192.0.2.7", True),
        ("192.0.2.8", False),
        ("::ffff:10.1.2.3", True),
        ("2001:db8:1::5", True),
        ("2001:db8:2::5", False),
        ("not an address", False),
        ("", False),
    ],
)
def test_who_is_trusted(peer: str, trusted: bool) -> None:
    """Threat 23: addresses and networks of both kinds, and IPv4 as an IPv6 socket shows it."""
    assert PROXIES.trusts(peer) is trusted
    assert pickle.loads(pickle.dumps(PROXIES)).trusts(peer) is trusted


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (b"203.0.113.9", CLIENT),
        (b" 203.0.113.9 ", CLIENT),
        (b"203.0.113.9:4711", CLIENT),
        (b"203.0.113.9, 10.0.0.2", CLIENT),
        (b"203.0.113.9, 10.0.0.2, 192.0.2.7", CLIENT),
        (b"6.6.6.6, 203.0.113.9, 10.0.0.2", CLIENT),
        (b"10.0.0.9, 203.0.113.9", CLIENT),
        (b'anything "at all, 203.0.113.9', CLIENT),
        (b"\xff\x00" * 20_000 + b",203.0.113.9", CLIENT),
        (b"203.0.113.9,", CLIENT),
        (b"2001:DB8::0:1", "2001:db8::1"),
        (b"[2001:db8::1]:443", "2001:db8::1"),
        (b"::ffff:203.0.113.9", CLIENT),
        (b"10.0.0.3, 10.0.0.2", "10.0.0.3"),
        (b"", None),
        (b",,,", None),
        (b"unknown", None),
        (b"203.0.113.9, unknown", None),
        (b"203.0.113.9, unknown, 10.0.0.2", None),
        (b"203.0.113.999", None),
        (b"203.0.113.9:99999", None),
        (b"203.0.113.9 6.6.6.6", None),
        (b"fe80::1%eth0", None),
        (b"http://203.0.113.9", None),
        (b"1" * 60_000, None),
        (b"203.0.113.9," + b"10.0.0.2," * 5_000, None),
        ("\u0661.1.1.1".encode(), None),
    ],
)
def test_x_forwarded_for(value: bytes, found: str | None) -> None:
    """Threat 23: read from the right, trusted ones passed over; unclear means the proxy itself."""
    assert address((X_FOR, value)) == found


def test_a_header_on_several_lines_is_one_list() -> None:
    """RFC 9110, section 5.3."""
    lines = [(X_FOR, b"6.6.6.6"), (X_FOR, b"203.0.113.9, 10.0.0.2"), (X_FOR, b"10.0.0.3")]
    assert address(*lines) == CLIENT


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (b"for=203.0.113.9", ProxiedClient(CLIENT, 0, None)),
        (b'For="203.0.113.9:80";Proto=HTTPS; by=10.0.0.1', ProxiedClient(CLIENT, 80, "https")),
        (b'for="[2001:db8::1]:4711";host="a,b"', ProxiedClient("2001:db8::1", 4711, None)),
        (
            b'for=6.6.6.6, for=203.0.113.9;proto=http,for="10.0.0.2"',
            ProxiedClient(CLIENT, 0, "http"),
        ),
        (b'for="6.6.6.6, for=203.0.113.9', ProxiedClient(CLIENT, 0, None)),
        (b'for="[::1]", for="[2001:db8::1]"', ProxiedClient("2001:db8::1", 0, None)),
        (b"for=203.0.113.9;proto=gopher", ProxiedClient(CLIENT, 0, None)),
        (b"for=unknown", None),
        (b"for=_hidden", None),
        (b'for="_hidden:_port"', None),
        (b"by=203.0.113.9", None),
        (b"for=203.0.113.9;for=6.6.6.6", None),
        (b"for=203.0.113.9;", ProxiedClient(CLIENT, 0, None)),
        (b"for=203.0.113.9 proto=http", None),
        (b'for="203.0.113.9', None),
        (b'for="203.0.113.\\9"', None),
        (b"203.0.113.9", None),
        (b'"' * 60_000, None),
        (b'",' * 30_000, None),
        (b"", None),
    ],
)
def test_forwarded(value: bytes, found: ProxiedClient | None) -> None:
    """Threat 23: the standard header, RFC 7239, with quotes that a stranger may have opened."""
    assert PROXIES.origin([(FORWARDED, value)]) == found


def test_two_headers_that_differ() -> None:
    """Threat 23: a proxy writes one of them and passes on the other, which a stranger wrote."""
    mine, theirs = b"203.0.113.9", b"6.6.6.6"
    assert address((X_FOR, mine), (FORWARDED, b"for=" + theirs)) is None
    assert address((X_FOR, theirs), (FORWARDED, b"for=" + mine)) is None
    assert address((X_FOR, mine), (FORWARDED, b"for=" + mine)) == CLIENT
    assert address((X_FOR, mine), (FORWARDED, b"nonsense")) is None
    assert address() is None


@pytest.mark.parametrize(
    ("value", "scheme"),
    [
        (b"https", "https"),
        (b"HTTP", "http"),
        (b"http, https", "https"),
        (b"wss", None),
        (b"", None),
    ],
)
def test_the_scheme(value: bytes, scheme: str | None) -> None:
    """The nearest proxy says how it was asked."""
    found = PROXIES.origin([(X_FOR, b"203.0.113.9"), (b"x-forwarded-proto", value)])
    assert found == ProxiedClient(CLIENT, 0, scheme)


ELEMENTS = st.lists(
    st.sampled_from(
        [
            "6.6.6.6",
            "10.0.0.2",
            "for=6.6.6.6",
            'for="',
            '"',
            ",",
            ";",
            "\\",
            " ",
            "[::1]",
            "x=",
            "\t",
        ]
    ),
    max_size=12,
).map("".join)


@given(before=st.one_of(ELEMENTS, st.text(max_size=50)))
def test_nothing_to_the_left_changes_who_it_is(before: str) -> None:
    """Threat 23: a client writes what it likes, and the proxy adds where it came from."""
    forged = before.encode("latin-1", "replace")
    assert address((X_FOR, forged + b", 203.0.113.9")) == CLIENT
    assert address((X_FOR, forged), (X_FOR, b"203.0.113.9, 10.0.0.2")) == CLIENT
    for own in (b"for=203.0.113.9", b'for="203.0.113.9:1";by="[::1]"'):
        assert address((FORWARDED, forged + b", " + own)) == CLIENT


@pytest.mark.parametrize("unit", [b'"', b",", b'",', b'"a"', b"for=10.0.0.2,", b'a="",', b"\\"])
def test_a_hostile_header_costs_little(unit: bytes) -> None:
    """Threat 23: the length of a header does not buy time."""
    headers = [(name, unit * (60_000 // len(unit))) for name in (X_FOR, FORWARDED)]
    began = time.thread_time()
    for _ in range(100):
        for header in headers:
            PROXIES.origin([header])
    assert time.thread_time() - began < 1
