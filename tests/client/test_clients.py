"""Both clients on real sockets: what they send, gather, keep open, and how they end."""

import asyncio
import gc
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import pytest

from birthmark_sma import __version__
from birthmark_sma.client import (
    AsyncAuthorityClient,
    AuthorityClient,
    Cause,
    Fail,
    Indeterminate,
    Options,
    Outcome,
    Pass,
)
from birthmark_sma.errors import ClientMisuseError, ConfigurationError
from tests.support.http.faulty_server import (
    FAILED,
    PASSED,
    Behaviour,
    FaultyServer,
    Visit,
    all_pass,
)
from tests.support.http.ports import closed_port
from tests.support.http.tls import TestCa
from tests.support.http.validation_calls import IMPATIENT, Ask, some_token
from tests.support.programs.running import wait_until

pytestmark = pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")


def slowly(visit: Visit) -> None:
    """Answer, after a while."""
    visit.stopped.wait(0.2)
    all_pass(visit)


# --- what is sent


def test_the_headers(ask: Ask) -> None:
    """The key, who asks, and a name for the request; nothing of the environment's."""
    with FaultyServer() as server:
        ask(server.url, access_key="sma_abc")
        [visit] = server.visits
    assert visit.request.startswith(b"POST /api/v1/validate/nuc/batch HTTP/1.1\r\n")
    assert visit.headers["authorization"] == "Bearer sma_abc"
    assert visit.headers["user-agent"] == f"birthmark-sma-client/{__version__}"
    assert visit.headers["content-type"] == "application/json"
    assert re.fullmatch(r"[0-9a-f]{32}", visit.headers["x-request-id"])


def test_each_attempt_has_an_id_of_its_own(ask: Ask) -> None:
    with FaultyServer(lambda visit: visit.answer({}, 503)) as server:
        outcomes = ask(server.url, options=IMPATIENT)
        ids = [visit.headers["x-request-id"] for visit in server.visits]
    assert len(set(ids)) == 3
    assert {each.request_id for each in outcomes if isinstance(each, Indeterminate)} == {ids[-1]}


def test_without_a_key_none_is_sent(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does a proxy of the environment get to see camera tokens."""
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{closed_port()}")
    monkeypatch.setenv("ALL_PROXY", f"http://127.0.0.1:{closed_port()}")
    with FaultyServer() as server:
        assert all(isinstance(each, Pass) for each in ask(server.url))
        assert "authorization" not in server.visits[0].headers


def test_a_path_before_the_api_is_kept() -> None:
    with FaultyServer() as server, AuthorityClient(f"{server.url}/sma/") as client:
        client.validate(some_token())
        assert server.visits[0].request.startswith(b"POST /sma/api/v1/validate/nuc/batch ")


@pytest.mark.parametrize(
    ("url", "arguments"),
    [
        ("http://sma.example.org", {}),
        ("http://10.0.0.1:8000", {"access_key": "sma_abc"}),
        ("ftp://sma.example.org", {}),
        ("sma.example.org", {}),
        ("", {}),
        ("https://", {}),
        ("https://user:word@sma.example.org", {}),
        ("https://sma.example.org/?a=b", {}),
        ("https://sma.example.org:99999", {}),
        ("https://[::1", {}),
        ("https://sma.example.org", {"access_key": "sma_abc\r\nX-Other: 1"}),
        ("https://sma.example.org", {"access_key": ""}),
        ("https://sma.example.org", {"access_key": "ключ"}),
        ("https://sma.example.org", {"ca_file": Path("nowhere.crt")}),
        ("https://sma.example.org", {"ca_file": Path(__file__)}),
        ("https://sma.example.org", {"client_certificate": (Path("no.crt"), Path("no.key"))}),
    ],
)
def test_what_cannot_be_used_is_refused_at_once(url: str, arguments: Any) -> None:
    """Threat 28: and no message repeats the key."""
    for kind in (AuthorityClient, AsyncAuthorityClient):
        with pytest.raises(ConfigurationError) as refused:
            kind(url, **arguments)
        assert "sma_abc" not in str(refused.value)
        assert "word" not in str(refused.value)


def test_plaintext_can_be_allowed() -> None:
    """Where a proxy beside this process speaks TLS for it."""
    AuthorityClient("http://sma.example.org", plaintext=True).close()


def test_tls_files_beside_a_context_are_refused(tmp_path: Path) -> None:
    ca = TestCa(tmp_path)
    with pytest.raises(ConfigurationError, match="either"):
        AuthorityClient("https://localhost", tls=ca.client_context(), ca_file=ca.file)


# --- gathering


def test_connections_are_used_again() -> None:
    with FaultyServer() as server, AuthorityClient(server.url) as client:
        for _ in range(20):
            assert isinstance(client.validate(some_token()), Pass)
        assert (len(server.visits), server.connections) == (20, 1)


def least_seconds(*calls: Callable[[], object]) -> list[float]:
    """Return the shortest time of each call, of 21 in turn. A busy machine makes others longer."""
    took: list[list[float]] = [[] for _ in calls]
    for _ in range(21):
        for call, times in zip(calls, took, strict=True):
            began = time.perf_counter()
            call()
            times.append(time.perf_counter() - began)
    return [min(times) for times in took]


def test_a_lone_call_goes_out_at_once() -> None:
    """The client waits for nothing: a call costs what a bare request costs, and little more."""
    with (
        FaultyServer() as server,
        AuthorityClient(server.url) as client,
        httpx2.Client(trust_env=False) as bare,
    ):
        call, request = least_seconds(
            lambda: client.validate(some_token()),
            lambda: bare.post(server.url, json={"tokens": []}),
        )
    assert call < 8 * request


async def test_concurrent_tasks_go_out_together() -> None:
    with FaultyServer() as server:
        async with AsyncAuthorityClient(server.url) as client:
            outcomes = await asyncio.gather(*[client.validate(some_token()) for _ in range(500)])
            assert all(isinstance(each, Pass) for each in outcomes)
        assert len(server.visits) == 1


def test_concurrent_threads_go_out_together() -> None:
    """What comes while others are on their way is gathered."""
    options = Options(max_in_flight=1)
    with FaultyServer(slowly) as server, AuthorityClient(server.url, options=options) as client:
        with ThreadPoolExecutor(50) as threads:
            outcomes = [*threads.map(lambda _: client.validate(some_token()), range(50))]
        assert all(isinstance(each, Pass) for each in outcomes)
        assert len(server.visits) <= 3


def test_each_gets_its_own_outcome() -> None:
    """However calls are gathered, nobody gets another's verdict."""

    def by_table(visit: Visit) -> None:
        visit.answer(
            {"results": [FAILED if each["table_id"] % 3 else PASSED for each in visit.tokens]}
        )

    async def ask(url: str) -> None:
        options = Options(max_batch=7, max_in_flight=3)
        async with AsyncAuthorityClient(url, options=options) as client:
            tokens = [replace(some_token(), table_id=number) for number in range(200)]
            outcomes = await asyncio.gather(*[client.validate(each) for each in tokens])
            again = await client.validate_many(tokens)
        for number, outcome in enumerate(outcomes):
            assert isinstance(outcome, Fail if number % 3 else Pass)
        assert outcomes == again

    with FaultyServer(by_table) as server:
        asyncio.run(ask(server.url))
        assert max(len(visit.tokens) for visit in server.visits) == 7


def test_no_batch_is_larger_than_the_limit_allows() -> None:
    """A 429 that could never pass is asked in parts."""

    def at_most_10(visit: Visit) -> None:
        if len(visit.tokens) > 10:
            policy = '"validate";q=10;w=60'
            visit.answer({}, 429, Retry_After="60", RateLimit_Policy=policy)
        else:
            all_pass(visit)

    with FaultyServer(at_most_10) as server, AuthorityClient(server.url) as client:
        outcomes = client.validate_many([some_token() for _ in range(25)])
        assert all(isinstance(each, Pass) for each in outcomes)
        assert sorted(len(visit.tokens) for visit in server.visits) == [5, 10, 10, 25]


def test_batches_grow_again_when_the_limit_does() -> None:
    """Each answer tells the limit; one that no answer tells any more is forgotten in a minute."""
    limit = 0

    def limited(visit: Visit) -> None:
        policy = f'"validate";q={limit};w=60'
        if len(visit.tokens) > limit:
            visit.answer({}, 429, Retry_After="60", RateLimit_Policy=policy)
        else:
            results = [PASSED] * len(visit.tokens)
            visit.answer({"results": results}, RateLimit_Policy=policy)

    async def ask(url: str) -> None:
        nonlocal limit
        async with AsyncAuthorityClient(url, options=Options(max_in_flight=1)) as client:
            sizes = []
            for each in (10, 15, 40):
                limit = each
                await client.validate_many([some_token() for _ in range(30)])
                sizes.append([len(visit.tokens) for visit in server.visits])
                server.visits.clear()
            assert sizes == [[30, 10, 10, 10], [10, 15, 5], [15, 15]]
            client._limited_until = 0.0  # a minute later
            limit = 100
            await client.validate_many([some_token() for _ in range(100)])
            assert [len(visit.tokens) for visit in server.visits] == [100]

    with FaultyServer(limited) as server:
        asyncio.run(ask(server.url))


def test_a_proxy_that_names_requests_by_itself() -> None:
    """Its answers are another's until told otherwise; why is told even by an open circuit."""

    def renamed(visit: Visit) -> None:
        visit.answer({"results": [PASSED]}, X_Request_ID="of-the-proxy")

    options = replace(IMPATIENT, circuit_failures=1)
    with FaultyServer(renamed) as server:
        with AuthorityClient(server.url, options=options) as client:
            for cause in (Cause.NOT_UNDERSTOOD, Cause.CIRCUIT_OPEN):
                outcome = client.validate(some_token())
                assert isinstance(outcome, Indeterminate)
                assert outcome.cause is cause
                assert "check_request_id=False" in outcome.detail
        options = replace(options, check_request_id=False)
        with AuthorityClient(server.url, options=options) as client:
            assert isinstance(client.validate(some_token()), Pass)


def test_nothing_to_ask_is_nothing_asked() -> None:
    with FaultyServer() as server, AuthorityClient(server.url) as client:
        assert client.validate_many([]) == []
        assert server.visits == []


def test_more_calls_than_may_wait_are_told_so() -> None:
    async def ask(url: str) -> list[Outcome]:
        options = replace(IMPATIENT, max_waiting=10)
        async with AsyncAuthorityClient(url, options=options) as client:
            return await asyncio.gather(*[client.validate(some_token()) for _ in range(15)])

    with FaultyServer() as server:
        outcomes = asyncio.run(ask(server.url))
    causes = [each.cause for each in outcomes if isinstance(each, Indeterminate)]
    assert causes == [Cause.OVERLOADED] * 5


def test_one_call_may_ask_about_more_than_may_wait() -> None:
    """Its parts go out one after the other, within the one deadline."""
    options = replace(IMPATIENT, max_waiting=10)
    with FaultyServer() as server, AuthorityClient(server.url, options=options) as client:
        outcomes = client.validate_many(some_token() for _ in range(35))
        assert [type(each) for each in outcomes] == [Pass] * 35
    with (
        FaultyServer(lambda visit: visit.wait()) as server,
        AuthorityClient(server.url, options=options) as client,
    ):
        outcomes = client.validate_many([some_token() for _ in range(35)], deadline=0.3)
        assert [type(each) for each in outcomes] == [Indeterminate] * 35


def test_what_is_no_camera_token_is_refused_before_it_is_sent() -> None:
    """It must not spoil the request in which others' tokens go out."""
    with FaultyServer() as server, AuthorityClient(server.url) as client:
        for wrong in (None, {"table_id": 1}, b""):
            with pytest.raises(TypeError, match="Expected a CameraToken"):
                client.validate(wrong)  # type: ignore[arg-type]
        assert server.visits == []


# --- why there is no verdict in time


def told_to_wait(status: int, seconds: int) -> Behaviour:
    """Ask to be left alone for a few seconds."""
    return lambda visit: visit.answer({}, status, Retry_After=str(seconds))


WAITS = [(429, Cause.RATE_LIMITED), (503, Cause.UNAVAILABLE), (502, Cause.UNAVAILABLE)]


@pytest.mark.parametrize(("status", "cause"), WAITS)
async def test_a_deadline_that_ends_within_a_wait(status: int, cause: Cause) -> None:
    """Threat 19's kin: it is told as the rate limit or the outage that it is, and for how long."""
    with FaultyServer(told_to_wait(status, 4), all_pass) as server:
        async with AsyncAuthorityClient(server.url, options=Options(deadline=20)) as client:
            patient = asyncio.create_task(client.validate(some_token()))
            hasty = await client.validate(some_token(), deadline=1.5)
            assert isinstance(hasty, Indeterminate)
            assert (hasty.cause, hasty.attempts) == (cause, 1)
            assert str(status) in hasty.detail
            assert hasty.retry_after is not None
            assert 0.5 < hasty.retry_after < 4
            assert hasty.request_id == server.visits[0].headers["x-request-id"]
            assert isinstance(await patient, Pass)


@pytest.mark.parametrize(("status", "cause"), WAITS)
async def test_a_call_behind_those_that_wait(status: int, cause: Cause) -> None:
    """It was never sent, and is told what holds up those before it."""
    with FaultyServer(told_to_wait(status, 3), all_pass) as server:
        options = Options(deadline=20, max_in_flight=1)
        async with AsyncAuthorityClient(server.url, options=options) as client:
            first = asyncio.create_task(client.validate(some_token()))
            while not client._pauses:
                await asyncio.sleep(0.01)
            hasty = await client.validate(some_token(), deadline=0.3)
            assert isinstance(hasty, Indeterminate)
            assert (hasty.cause, hasty.attempts) == (cause, 0)
            assert hasty.retry_after is not None
            assert isinstance(await first, Pass)


def test_no_answer_is_no_answer() -> None:
    """And what was said before it is told as well."""
    options = replace(IMPATIENT, read_timeout=5)
    with (
        FaultyServer(lambda visit: visit.answer({}, 503), lambda visit: visit.wait()) as server,
        AuthorityClient(server.url, options=options) as client,
    ):
        outcome = client.validate(some_token(), deadline=2)
    assert isinstance(outcome, Indeterminate)
    assert (outcome.cause, outcome.attempts) == (Cause.TIMED_OUT, 2)
    assert "(503)" in outcome.detail


# --- the log


def test_what_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """Threat 28: retries, waits and the circuit, without key or token."""
    caplog.set_level(logging.INFO, "birthmark_sma.client")
    options = replace(IMPATIENT, circuit_failures=2, circuit_rest=0.3)
    token = some_token()

    def down(visit: Visit) -> None:
        visit.answer({}, 503, Retry_After="0")

    with (
        FaultyServer(down, down, all_pass) as server,
        AuthorityClient(server.url, options=options, access_key="sma_needle") as client,
    ):
        assert isinstance(client.validate(token), Indeterminate)
        time.sleep(0.4)
        assert isinstance(client.validate(token), Pass)
    told = [(record.levelname, record.getMessage()) for record in caplog.records]
    ids = [visit.headers["x-request-id"] for visit in server.visits]
    assert [level for level, _ in told] == ["INFO"] * 3 + ["WARNING"] + ["INFO"] * 2
    assert told[0][1].startswith(f"Request {ids[0]} got no verdict (unavailable)")
    assert told[1][1].startswith("The next attempt is in 0.0 s")
    assert told[2][1].startswith(f"Request {ids[1]} got no verdict")
    assert told[3][1].startswith("The circuit breaker is open, so nothing is sent for 0.3 s.")
    assert told[5][1].startswith("The circuit breaker is closed")
    for secret in ("sma_needle", token.encrypted_nuc_hash.hex(), token.nonce.hex()):
        assert secret not in caplog.text


# --- the circuit


def test_the_circuit_opens_and_closes() -> None:
    """Nothing is sent while it is open; one request then finds the authority well."""
    options = replace(IMPATIENT, attempts=1, circuit_failures=2, circuit_rest=0.5)

    def down(visit: Visit) -> None:
        visit.answer({}, 503)

    with (
        FaultyServer(down, down, all_pass) as server,
        AuthorityClient(server.url, options=options) as client,
    ):
        causes = []
        for _ in range(4):
            outcome = client.validate(some_token())
            assert isinstance(outcome, Indeterminate)
            causes.append(outcome.cause)
        assert causes == [Cause.UNAVAILABLE] * 2 + [Cause.CIRCUIT_OPEN] * 2
        assert len(server.visits) == 2
        time.sleep(0.6)
        assert isinstance(client.validate(some_token()), Pass)
        assert isinstance(client.validate(some_token()), Pass)


# --- ends


async def test_a_cancelled_call_takes_nobody_along() -> None:
    """Others in the same request still get their outcome."""
    with FaultyServer(slowly) as server:
        async with AsyncAuthorityClient(server.url) as client:
            tasks = [asyncio.create_task(client.validate(some_token())) for _ in range(3)]
            await asyncio.sleep(0.05)
            tasks[1].cancel()
            done = await asyncio.gather(*tasks, return_exceptions=True)
            assert isinstance(done[1], asyncio.CancelledError)
            assert isinstance(done[0], Pass)
            assert isinstance(done[2], Pass)
        assert len(server.visits) == 1


def test_a_call_may_have_a_deadline_of_its_own() -> None:
    with FaultyServer(slowly) as server, AuthorityClient(server.url) as client:
        hasty = client.validate(some_token(), deadline=0.05)
        assert isinstance(hasty, Indeterminate)
        assert (hasty.cause, hasty.attempts) == (Cause.TIMED_OUT, 1)
        assert isinstance(client.validate(some_token(), deadline=5), Pass)
        for deadline in (0.0, -1.0, float("nan")):
            outcome = client.validate(some_token(), deadline=deadline)
            assert isinstance(outcome, Indeterminate)


def test_close_waits_for_what_is_on_its_way() -> None:
    """Threads that wait when another closes get their outcome."""
    with FaultyServer(slowly) as server:
        client = AuthorityClient(server.url)
        with ThreadPoolExecutor(8) as threads:
            waiting = [threads.submit(client.validate, some_token()) for _ in range(8)]
            wait_until(lambda: bool(server.visits), 5)
            client.close()
            found = []
            for each in waiting:
                try:
                    found.append(each.result(5))
                except ClientMisuseError:  # it came too late
                    continue
        assert found
        assert all(isinstance(each, Pass) for each in found)


async def test_a_closed_client_says_so() -> None:
    client = AuthorityClient("https://localhost")
    client.close()
    client.close()
    with pytest.raises(ClientMisuseError, match="closed"):
        client.validate(some_token())
    own = AsyncAuthorityClient("https://localhost")
    await own.close()
    with pytest.raises(ClientMisuseError, match="closed"):
        await own.validate(some_token())


def test_another_event_loop_is_refused() -> None:
    with FaultyServer() as server:
        client = AsyncAuthorityClient(server.url)
        asyncio.run(client.validate_many([some_token()]))
        with pytest.raises(ClientMisuseError, match="another event loop"):
            asyncio.run(client.validate_many([some_token()]))


def test_a_client_that_is_forgotten_leaves_no_thread() -> None:
    def named() -> set[int | None]:
        return {t.ident for t in threading.enumerate() if t.name == "birthmark-sma-client"}

    before = named()
    with FaultyServer() as server:
        client = AuthorityClient(server.url)
        client.validate(some_token())
        assert len(named() - before) == 1
        del client
        gc.collect()
        wait_until(lambda: not named() - before, 5)


FORKING = """
import os, sys
from birthmark_sma.client import AuthorityClient, Pass
from birthmark_sma.protocol.camera_token import CameraToken

token = CameraToken(bytes(48), 1, 2, bytes(12))
with AuthorityClient(sys.argv[1]) as client:
    assert isinstance(client.validate(token), Pass)
    child = os.fork()
    assert isinstance(client.validate(token), Pass)
    if child == 0:
        client.close()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert status == 0, status
    assert isinstance(client.validate(token), Pass)
print("both")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_process_that_forks_has_a_client_on_both_sides() -> None:
    """Servers that load an application once and fork need no care."""
    with FaultyServer() as server:
        ran = subprocess.run(
            [sys.executable, "-c", FORKING, server.url],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert (ran.stdout, ran.stderr) == ("both\n", "")
        assert server.connections == 2


INTERRUPTED = """
import sys
from birthmark_sma.client import AuthorityClient
from birthmark_sma.protocol.camera_token import CameraToken

client = AuthorityClient(sys.argv[1])
print("asking", flush=True)
client.validate(CameraToken(bytes(48), 1, 2, bytes(12)), deadline=60)
"""


def test_ctrl_c_ends_a_call() -> None:
    with FaultyServer(lambda visit: visit.wait()) as server:
        process = subprocess.Popen(
            [sys.executable, "-c", INTERRUPTED, server.url],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        process.stdout.readline()
        wait_until(lambda: bool(server.visits), 10)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=10)
        assert "KeyboardInterrupt" in said
