"""An exchange that ends, in memory too; in time, the tests of its callers see to it."""

import gzip
import tracemalloc

import httpx2
import pytest

from birthmark_sma.device import bounded_post
from tests.support.http.faulty_server import FaultyServer


def test_a_small_answer_cannot_swell() -> None:
    """64 MiB of spaces in 64 KiB: a Raspberry Pi has 512."""
    bomb = gzip.compress(b" " * 67_108_864)
    with (
        httpx2.Client(timeout=10) as client,
        FaultyServer(lambda visit: visit.answer(bomb, content_encoding="gzip")) as server,
    ):
        tracemalloc.start()
        try:
            with pytest.raises(httpx2.RemoteProtocolError, match="compressed"):
                bounded_post(client, server.url, b"{}", {}, seconds=10, max_bytes=65_536)
            assert tracemalloc.get_traced_memory()[1] < 4_000_000
        finally:
            tracemalloc.stop()
        assert server.visits[0].headers["accept-encoding"] == "identity"
