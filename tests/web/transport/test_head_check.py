"""Heads that a proxy and this server could read differently are refused."""

import pytest

from birthmark_sma.web import problems
from birthmark_sma.web.problems import Problem
from birthmark_sma.web.request_context import Header
from birthmark_sma.web.transport.head_check import check_head

HOST = (b"host", b"sma.example")
CHUNKED = (b"transfer-encoding", b"Chunked")


@pytest.mark.parametrize(
    ("version", "target", "headers", "refusal"),
    [
        ("2.0", b"/", [HOST], problems.HTTP_VERSION),
        ("1.1", b"/", [], problems.NOT_ONE_HOST),
        ("1.1", b"/", [HOST, HOST], problems.NOT_ONE_HOST),
        ("1.0", b"/", [(b"host", b"user@sma.example")], problems.NOT_ONE_HOST),
        ("1.1", b"/", [HOST, CHUNKED, CHUNKED], problems.TRANSFER_CODING),
        ("1.1", b"/", [HOST, (b"transfer-encoding", b"gzip")], problems.TRANSFER_CODING),
        ("1.0", b"/", [CHUNKED], problems.NOT_HTTP),
        ("1.1", b"/a#b", [HOST], problems.NOT_HTTP),
        ("1.1", b"http:///a", [HOST], problems.NOT_HTTP),
        ("1.1", b"sma.example:443", [HOST], problems.NOT_HTTP),
    ],
)
def test_an_ambiguous_head_is_refused(
    version: str, target: bytes, headers: list[Header], refusal: Problem
) -> None:
    """Threat: request smuggling. The order of the checks decides between two reasons."""
    assert check_head(version, target, list(headers)) is refusal


def test_a_head_without_ambiguity_stays_as_it_is() -> None:
    for version, headers in (("1.0", []), ("1.1", [HOST, CHUNKED])):
        given = list(headers)
        assert check_head(version, b"/a?b", given) == b"/a?b"
        assert given == headers


@pytest.mark.parametrize(
    ("target", "path"),
    [(b"http://a.example:80/x?y", b"/x?y"), (b"HTTPS://a.example:80?y", b"/?y")],
)
def test_the_host_of_an_absolute_target_replaces_the_field(target: bytes, path: bytes) -> None:
    headers = [HOST, (b"accept", b"*/*")]
    assert check_head("1.1", target, headers) == path
    assert headers == [(b"accept", b"*/*"), (b"host", b"a.example:80")]
