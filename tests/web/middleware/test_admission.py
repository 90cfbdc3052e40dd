"""How many tokens a body can have: an upper bound that is exact for compact JSON."""

import json

import pytest

from birthmark_sma.web.api.models.validation import ValidateBatchRequest, ValidateNucRequest
from birthmark_sma.web.middleware.admission import announced_bytes, most_tokens
from birthmark_sma.web.middleware.request_body import checked, parse

TOKEN = {
    "encrypted_nuc_hash": "0f" * 48,
    "table_id": 0,
    "key_index": 0,
    "nonce": "f0" * 12,
}
COMPACT = (",", ":")


@pytest.mark.parametrize("tokens", [1, 2, 3, 10, 999, 1_000])
def test_the_shortest_batch_has_exactly_so_many(tokens: int) -> None:
    """No shorter text is accepted, so a larger batch is never taken for a smaller one."""
    body = json.dumps({"tokens": [TOKEN] * tokens}, separators=COMPACT).encode()
    batch = parse(body, ValidateBatchRequest, 10_000)
    assert all(checked(each, ValidateNucRequest) for each in batch.tokens)
    assert most_tokens(len(body)) == tokens
    if tokens > 1:
        assert most_tokens(len(body) - 1) == tokens - 1


@pytest.mark.parametrize(
    ("length", "tokens"), [(None, 1_000), (0, 1), (13, 1), (2**40, 1_000), (1_048_576, 1_000)]
)
def test_the_bound_has_bounds(length: int | None, tokens: int) -> None:
    assert most_tokens(length) == tokens


@pytest.mark.parametrize(
    ("headers", "length"),
    [
        ([], None),
        ([(b"transfer-encoding", b"chunked")], None),
        ([(b"host", b"x"), (b"content-length", b"184321")], 184_321),
        ([(b"content-length", b"-1")], None),
    ],
)
def test_the_announced_length(headers: list[tuple[bytes, bytes]], length: int | None) -> None:
    assert announced_bytes(headers) == length
