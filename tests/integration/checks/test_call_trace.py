"""A request passes through few files, so that a newcomer can follow it."""

from collections.abc import Iterator

import pytest

from checks.call_trace import REQUESTS, TracedServer, list_files, run_traced_server

# What a bad day needs is in modules of its own, which each request passes: storage/outages
# (retries, unknown commits), storage/pool (the queue that callers share, and its lock),
# web/middleware/admission, runtime/writer_health and, for tokens, validation/activity_counter.
# validation/opening tries the keys of two epochs; key_tables/device_keys and key_tables/store prove
# that a device gets keys that no rotation replaced. authority/ca/issuers says which intermediate
# signs, and ca/store whether it still does at the commit: provisioning passes both, and a
# revocation list the first.
MOST_FILES = {"validate": 40, "provision": 55, "ready": 21, "crl": 18}
"""Lower these when the code allows it; a change that needs more has to say why."""


@pytest.fixture(scope="module")
def traced() -> Iterator[TracedServer]:
    """A server that records its calls."""
    with run_traced_server() as server:
        yield server


@pytest.mark.parametrize("request_kind", REQUESTS)
def test_a_request_passes_through_few_files(traced: TracedServer, request_kind: str) -> None:
    """Files of src/ whose functions are entered, background tasks left out."""
    files = list_files(traced.trace(request_kind))
    assert len(files) <= MOST_FILES[request_kind], files
    assert any(file.startswith("web/") for file in files)
