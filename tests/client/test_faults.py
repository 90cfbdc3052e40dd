"""The fault table: each kind of failure times each call. There is no verdict, and it is retried or
INDETERMINATE; never FAIL, and never an exception.
"""

import json
import ssl
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import httpx2
import pytest

from birthmark_sma.client import Cause, Indeterminate, Pass
from birthmark_sma.client.transport import to_transport_error
from tests.support.http.faulty_server import (
    FAILED,
    PASSED,
    Behaviour,
    FaultyServer,
    Visit,
    all_pass,
    http,
)
from tests.support.http.ports import closed_port
from tests.support.http.tls import DAY, TestCa
from tests.support.http.validation_calls import IMPATIENT, Ask

pytestmark = pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")

SLACK = 1.5
"""Seconds by which a busy machine may be late."""

AGGREGATOR = Path(__file__).parents[2] / "examples" / "aggregator.mjs"

FAIL_BODY = {"validation_result": "FAIL", "error": "Unknown table ID"}


def one_of(*causes: Cause) -> frozenset[Cause]:
    """The causes that a fault may have."""
    return frozenset(causes)


def results(*given: Any) -> Behaviour:
    """Answer 200 with these results, repeated for all tokens if there is one."""

    def behave(visit: Visit) -> None:
        each = [*given] * len(visit.tokens) if len(given) == 1 else [*given]
        visit.answer({"results": each})

    return behave


def status(code: int | str, body: Any = None, **headers: str) -> Behaviour:
    """Answer with a status, and a body that says FAIL for every token unless another is given."""

    def behave(visit: Visit) -> None:
        said = FAIL_BODY | {"results": [FAILED] * len(visit.tokens)} if body is None else body
        visit.answer(said, code, **headers)

    return behave


def raw(data: bytes) -> Behaviour:
    """Send these bytes and close."""

    def behave(visit: Visit) -> None:
        visit.send(data)
        visit.connection.close()

    return behave


def reset(visit: Visit) -> None:
    visit.reset()


def close(visit: Visit) -> None:
    visit.connection.close()


def silence(visit: Visit) -> None:
    visit.wait()


def dripping_head(visit: Visit) -> None:
    visit.drip(http({"results": [FAILED] * len(visit.tokens)}), 0.05)


def dripping_body(visit: Visit) -> None:
    head, _, body = http({"results": [FAILED] * len(visit.tokens)}).partition(b"\r\n\r\n")
    visit.send(head + b"\r\n\r\n")
    visit.drip(body, 0.05)


def half_an_answer(visit: Visit) -> None:
    whole = http({"results": [FAILED] * len(visit.tokens)})
    visit.send(whole[:-20])
    visit.connection.close()


def half_a_head(visit: Visit) -> None:
    visit.send(b"HTTP/1.1 200 OK\r\nContent-Ty")
    visit.connection.close()


def half_a_chunk(visit: Visit) -> None:
    visit.send(
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
        b'400\r\n{"results": ['
    )
    visit.connection.close()


def reset_within_the_answer(visit: Visit) -> None:
    visit.send(http({"results": [FAILED] * len(visit.tokens)})[:-20])
    time.sleep(0.05)
    visit.reset()


def endless_body(visit: Visit) -> None:
    visit.send(
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    chunk = b"10000\r\n" + b" " * 65_536 + b"\r\n"
    for _ in range(2_000):
        if visit.stopped.is_set():
            return
        try:
            visit.connection.sendall(chunk)
        except OSError:
            return


def endless_head(visit: Visit) -> None:
    visit.send(b"HTTP/1.1 200 OK\r\n")
    for _ in range(2_000):
        try:
            visit.connection.sendall(b"X-More: " + b"x" * 4_096 + b"\r\n")
        except OSError:
            return


def endless_continue(visit: Visit) -> None:
    for _ in range(200_000):
        if visit.stopped.is_set():
            return
        try:
            visit.connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n" * 10)
        except OSError:
            return


def somebody_elses(visit: Visit) -> None:
    visit.answer({"results": [PASSED] * len(visit.tokens)}, x_request_id="of-somebody-else")


NOBODY = one_of(Cause.UNREACHABLE)
LATE = one_of(Cause.TIMED_OUT)
STRANGE = one_of(Cause.NOT_UNDERSTOOD)
AWAY = one_of(Cause.UNAVAILABLE)
LIMITED = one_of(Cause.RATE_LIMITED)
REFUSED = one_of(Cause.REFUSED)
ELSEWHERE = one_of(Cause.REDIRECTED)
ONCE, THRICE = 1, 3
"""How often a fault is met: what asking again cannot mend is met once."""

HTTP_DATE = format_datetime(datetime(2099, 1, 1, tzinfo=UTC), usegmt=True)

FAULTS: dict[str, tuple[Behaviour, frozenset[Cause], int]] = {
    # the connection
    "reset": (reset, NOBODY, THRICE),
    "closed": (close, NOBODY, THRICE),
    "reset within the answer": (reset_within_the_answer, NOBODY, THRICE),
    "truncated head": (half_a_head, NOBODY, THRICE),
    "truncated body": (half_an_answer, NOBODY, THRICE),
    "truncated chunk": (half_a_chunk, NOBODY, THRICE),
    # slowness
    "silence": (silence, LATE, ONCE),
    "slow head": (dripping_head, LATE, ONCE),
    "slow body": (dripping_body, LATE, ONCE),
    "100 without end": (endless_continue, LATE | STRANGE, ONCE),
    # told to wait
    "429": (status(429), LIMITED, THRICE),
    "429 at once": (status(429, Retry_After="0"), LIMITED, THRICE),
    "429 in an hour": (status(429, Retry_After="3600"), LIMITED, ONCE),
    "429 until a date": (status(429, Retry_After=HTTP_DATE), LIMITED, ONCE),
    "429 with nonsense": (status(429, Retry_After="soon"), LIMITED, THRICE),
    "429 below zero": (status(429, Retry_After="-5"), LIMITED, THRICE),
    "503": (status(503), AWAY, THRICE),
    "503 at once": (status(503, Retry_After="0"), AWAY, THRICE),
    "503 in an hour": (status(503, Retry_After="3600"), AWAY, ONCE),
    "503 no JSON": (status(503, b"<html>FAIL</html>"), AWAY, THRICE),
    "429 compressed": (status(429, b"\x1f\x8b\x08", Content_Encoding="gzip"), LIMITED, THRICE),
    "503 compressed": (status(503, b"\x1f\x8b\x08", Content_Encoding="gzip"), AWAY, THRICE),
    # other statuses, each of which says FAIL
    "500": (status(500), AWAY, ONCE),
    "502": (status(502), AWAY, THRICE),
    "504": (status(504), AWAY, THRICE),
    "502 in an hour": (status(502, Retry_After="3600"), AWAY, ONCE),
    "407": (status(407), one_of(Cause.PROXY_REFUSED), ONCE),
    "400": (status(400), REFUSED, ONCE),
    "400 of a single token": (status(400, FAIL_BODY | FAILED), REFUSED, ONCE),
    "401": (status(401), one_of(Cause.NOT_ALLOWED), ONCE),
    "403": (status(403), one_of(Cause.NOT_ALLOWED), ONCE),
    "404": (status(404), REFUSED, ONCE),
    "409": (status(409), one_of(Cause.ALREADY_SUBMITTED), ONCE),
    "413": (status(413), REFUSED, ONCE),
    "422": (status(422), REFUSED, ONCE),
    "201": (status(201), STRANGE, ONCE),
    "204": (raw(b"HTTP/1.1 204 No Content\r\n\r\n"), STRANGE, ONCE),
    "206": (status(206), STRANGE, ONCE),
    "299": (status(299), STRANGE, ONCE),
    "999": (status(999), STRANGE, ONCE),
    "101": (raw(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n"), STRANGE, ONCE),
    # redirects
    **{
        f"{code}": (status(code, Location="/api/v1/validate/nuc/batch"), ELSEWHERE, ONCE)
        for code in (301, 302, 303, 307, 308)
    },
    # no HTTP
    "garbage": (raw(b"\x00\xff\x16\x03" * 64), STRANGE, ONCE),
    "a line of text": (raw(b"FAIL\r\n\r\n"), STRANGE, ONCE),
    "HTTP/1.0 junk": (raw(b"HTTP/1.0 200 FAIL\r\n\r\nFAIL"), STRANGE, ONCE),
    "HTTP/1.0 with a verdict": (
        raw(b'HTTP/1.0 200 OK\r\n\r\n{"validation_result": "FAIL"}'),
        STRANGE,
        ONCE,
    ),
    "HTTP/9": (raw(b"HTTP/9.9 200 OK\r\n\r\n"), STRANGE, ONCE),
    "two lengths": (
        raw(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nFAIL"),
        STRANGE,
        ONCE,
    ),
    "a status without end": (raw(b"HTTP/1.1 2000000 OK\r\n\r\n"), STRANGE, ONCE),
    # too much
    "endless body": (endless_body, STRANGE, ONCE),
    "endless head": (endless_head, STRANGE, ONCE),
    "a petabyte announced": (
        raw(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
            b"Content-Length: 1125899906842624\r\n\r\n{}"
        ),
        NOBODY,
        THRICE,
    ),
    "compressed": (status(200, b"\x1f\x8b\x08", Content_Encoding="gzip"), STRANGE, ONCE),
    # another shape
    "empty": (status(200, b""), STRANGE, ONCE),
    "no JSON": (status(200, b"FAIL"), STRANGE, ONCE),
    "no UTF-8": (status(200, b'{"results": ["\xff"]}'), STRANGE, ONCE),
    "truncated JSON": (status(200, b'{"results": [{"validation_result": "FAIL"'), STRANGE, ONCE),
    "deep JSON": (status(200, b"[" * 200_000), STRANGE, ONCE),
    "a long number": (status(200, b'{"results": ' + b"1" * 5_000 + b"}"), STRANGE, ONCE),
    "NaN": (status(200, b'{"results": [NaN]}'), STRANGE, ONCE),
    "a list": (status(200, b"[]"), STRANGE, ONCE),
    "null": (status(200, b"null"), STRANGE, ONCE),
    "a text": (status(200, b'"FAIL"'), STRANGE, ONCE),
    "one verdict": (status(200, FAILED), STRANGE, ONCE),
    "too few": (status(200, {"results": []}), STRANGE, ONCE),
    "too many": (status(200, {"results": [FAILED] * 7}), STRANGE, ONCE),
    "results by name": (status(200, {"results": {"0": FAILED}}), STRANGE, ONCE),
    "a name twice": (
        status(200, b'{"results": [], "results": ' + json.dumps([FAILED]).encode() + b"}"),
        STRANGE,
        ONCE,
    ),
    "HTML": (status(200, content_type="text/html"), STRANGE, ONCE),
    "somebody else's answer": (somebody_elses, STRANGE, ONCE),
    # results of another shape
    **{
        f"result: {name}": (results(each), STRANGE, ONCE)
        for name, each in {
            "null": None,
            "true": True,
            "false": False,
            "a text": "FAIL",
            "nothing": {},
            "no time": {k: v for k, v in FAILED.items() if k != "timestamp"},
            "a bad time": FAILED | {"timestamp": "yesterday"},
            "a local time": FAILED | {"timestamp": "2026-01-31T12:00:00+01:00"},
            "no manufacturer": FAILED | {"manufacturer_id": None},
            "a verdict in lower case": FAILED | {"validation_result": "fail"},
            "a third verdict": FAILED | {"validation_result": "MAYBE"},
            "no verdict": FAILED | {"validation_result": None},
            "a boolean verdict": FAILED | {"validation_result": False},
            "a family that nothing can print": PASSED | {"device_family": "\ud800"},
            "a list of verdicts": FAILED | {"validation_result": ["FAIL"]},
            "a FAIL that names": FAILED | {"device_serial": "camera-1"},
            "a numbered device": PASSED | {"device_serial": 1},
            "a PASS with an error": PASSED | {"error": "Unknown table ID"},
            "an error beside a verdict": PASSED
            | {"validation_result": "MAYBE", "error": "Unknown table ID"},
        }.items()
    },
    "result: FAIL for another reason": (
        results({"validation_result": "FAIL", "error": "Database unavailable"}),
        REFUSED,
        ONCE,
    ),
    "result: a whole FAIL with an error": (
        results(FAILED | {"error": "Unknown table ID"}),
        REFUSED,
        ONCE,
    ),
    "result: no second verdict": (
        results({"error": "Once each."}),
        one_of(Cause.ALREADY_SUBMITTED),
        ONCE,
    ),
}


def check(outcomes: Any, causes: frozenset[Cause], asked: float) -> None:
    """No verdict, for one of these causes, and in time."""
    took = time.monotonic() - asked
    assert all(isinstance(each, Indeterminate) for each in outcomes), outcomes
    assert {each.cause for each in outcomes} <= causes
    assert all(each.detail for each in outcomes)
    assert took < IMPATIENT.deadline + SLACK


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_never_a_verdict(name: str, ask: Ask) -> None:
    """Threat 19: whatever comes back, there is no FAIL that the authority did not say."""
    behaviour, causes, times = FAULTS[name]
    with FaultyServer(behaviour) as server:
        asked = time.monotonic()
        outcomes = ask(server.url, options=IMPATIENT)
        check(outcomes, causes, asked)
        assert len(server.visits) == times
        assert {each.attempts for each in outcomes if isinstance(each, Indeterminate)} == {times}


@pytest.mark.parametrize("name", [name for name, (*_, n) in FAULTS.items() if n == THRICE])
def test_a_fault_that_passes_is_asked_over(name: str, ask: Ask) -> None:
    """Retried on 503, 429 and connection loss: then there is a verdict after all."""
    behaviour = FAULTS[name][0]
    with FaultyServer(behaviour, behaviour, all_pass) as server:
        outcomes = ask(server.url, options=IMPATIENT)
        assert all(isinstance(each, Pass) for each in outcomes), outcomes
        assert len(server.visits) == 3


ASK_IN_NODE = """
    import { readFileSync } from "node:fs";
    const { aggregator, servers, deadline } = JSON.parse(readFileSync(0, "utf8"));
    const told = async ([name, url], number) => {
      const { ask } = await import(`${aggregator}?${number}`); // a 429 counts for the program
      const asked = performance.now();
      const verdict = (await ask(url, {}, deadline))?.validation_result ?? null;
      return [name, { verdict, seconds: (performance.now() - asked) / 1000 }];
    };
    const all = await Promise.all(Object.entries(servers).map(told));
    console.log(JSON.stringify(Object.fromEntries(all)));
    process.exit();
"""
"""Asks at each address, as so many programs would."""


@dataclass(frozen=True)
class Told:
    """What examples/aggregator.mjs makes of a server, how often it asked, and for how long."""

    verdict: str | None
    visits: int
    seconds: float


def in_node(behaviours: Mapping[str, Sequence[Behaviour]], deadline: float) -> dict[str, Told]:
    """Ask servers that behave so, all at the same time."""
    with ExitStack() as stack:
        servers = {
            name: stack.enter_context(FaultyServer(*behaves))
            for name, behaves in behaviours.items()
        }
        given = {
            "aggregator": AGGREGATOR.as_uri(),
            "servers": {name: server.url for name, server in servers.items()},
            "deadline": deadline * 1_000,
        }
        ran = subprocess.run(
            ["node", "--input-type=module", "--eval", ASK_IN_NODE],
            input=json.dumps(given).encode(),
            capture_output=True,
            timeout=60,
            check=False,
        )
        assert ran.returncode == 0, ran.stderr.decode()
        told = json.loads(ran.stdout)
        return {
            name: Told(each["verdict"], len(servers[name].visits), each["seconds"])
            for name, each in told.items()
        }


def test_the_example_for_node_takes_no_fault_for_a_verdict() -> None:
    """Threat 19: the same table, but for an answer that names another request: it names none."""
    table = {name: [fault] for name, (fault, *_) in FAULTS.items() if fault is not somebody_elses}
    told = in_node({**table, "passed": [all_pass], "failed": [results(FAILED)]}, 1.5)
    assert (told["passed"].verdict, told["failed"].verdict) == ("PASS", "FAIL")
    del told["passed"], told["failed"]
    assert [name for name, each in told.items() if each.verdict is not None] == []
    assert [name for name, each in told.items() if each.seconds > 1.5 + SLACK] == []
    assert [name for name, each in told.items() if each.visits == 0] == []
    for name in ("429 in an hour", "429 until a date", "503 in an hour", "500", "401", "302"):
        assert told[name].visits == 1, name


def test_the_example_for_node_waits_as_long_as_it_is_told_to() -> None:
    """Retry-After in seconds and as a date; nonsense is as if it were not there."""
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=4), usegmt=True)
    told = in_node(
        {
            "seconds": [status(429, Retry_After="2"), all_pass],
            "a date": [status(503, Retry_After=soon), all_pass],
            "nothing": [status(503), all_pass],
            "nonsense": [status(429, Retry_After="-5"), all_pass],
        },
        8,
    )
    assert [(each.verdict, each.visits) for each in told.values()] == [("PASS", 2)] * 4
    assert [round(each.seconds) >= 2 for each in told.values()] == [True, True, False, False]


def test_no_connection_of_ones_own_is_free() -> None:
    """That is this process's matter: nothing went out, and nothing speaks against the authority."""
    fault = to_transport_error(httpx2.PoolTimeout("none is free"))
    assert (fault.cause, fault.again, fault.authority_ails) == (Cause.OVERLOADED, True, False)


def test_nobody_listens(ask: Ask) -> None:
    """Threat 19: a connection that is refused is no verdict."""
    asked = time.monotonic()
    outcomes = ask(f"http://127.0.0.1:{closed_port()}", options=IMPATIENT)
    check(outcomes, NOBODY, asked)
    assert {each.attempts for each in outcomes if isinstance(each, Indeterminate)} == {3}


def test_no_such_host(ask: Ask) -> None:
    """Threat 19: nor is a name that stands for nothing."""
    asked = time.monotonic()
    check(ask("https://nowhere.invalid", options=IMPATIENT), NOBODY | LATE, asked)


def test_a_server_that_accepts_and_resets(ask: Ask) -> None:
    """Nor is a connection that is cut before a byte was read."""
    with FaultyServer(before_reading=reset) as server:
        asked = time.monotonic()
        check(ask(server.url, options=IMPATIENT), NOBODY, asked)


def test_a_wait_that_is_asked_for_is_kept(ask: Ask) -> None:
    """Retry-After is honoured where the deadline allows it."""
    with FaultyServer(status(429, Retry_After="1"), all_pass) as server:
        asked = time.monotonic()
        outcomes = ask(server.url, options=replace(IMPATIENT, deadline=5))
        assert time.monotonic() - asked >= 1
        assert all(isinstance(each, Pass) for each in outcomes)


def test_a_deadline_bounds_what_only_drips(ask: Ask) -> None:
    """Each byte comes within the read timeout, the answer never: the deadline ends it."""
    with FaultyServer(dripping_body) as server:
        asked = time.monotonic()
        outcomes = ask(server.url, options=replace(IMPATIENT, deadline=0.7))
        assert time.monotonic() - asked < 0.7 + SLACK
        check(outcomes, LATE, asked)


# --- proxies


def answering_connect(line: bytes) -> Behaviour:
    """Be a proxy that answers CONNECT so."""

    def behave(visit: Visit) -> None:
        visit.connection.recv(65_536)
        visit.send(b"HTTP/1.1 " + line + b"\r\nContent-Length: 0\r\n\r\n")

    return behave


@pytest.mark.parametrize(
    ("line", "cause", "times"),
    [
        (b"407 Proxy Authentication Required", Cause.PROXY_REFUSED, ONCE),
        (b"407", Cause.PROXY_REFUSED, ONCE),
        (b"403 Forbidden", Cause.PROXY_REFUSED, ONCE),
        (b"502 Bad Gateway", Cause.UNREACHABLE, THRICE),
        (b"504 Gateway Timeout", Cause.UNREACHABLE, THRICE),
    ],
)
def test_a_proxy_that_lets_nobody_through(ask: Ask, line: bytes, cause: Cause, times: int) -> None:
    """What it refuses has an ending of its own; what it does not reach may be there later."""
    with FaultyServer(before_reading=answering_connect(line)) as proxy:
        asked = time.monotonic()
        outcomes = ask("https://authority.example", proxy=proxy.url, options=IMPATIENT)
        check(outcomes, one_of(cause), asked)
        assert proxy.connections == times
    if cause is Cause.PROXY_REFUSED:
        [detail] = {each.detail for each in outcomes if isinstance(each, Indeterminate)}
        assert line[:3].decode() in detail
        assert not cause.passes


# --- TLS


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> TestCa:
    """The CA that the clients trust."""
    return TestCa(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="module")
def other_ca(tmp_path_factory: pytest.TempPathFactory) -> TestCa:
    """A CA that nobody trusts."""
    return TestCa(tmp_path_factory.mktemp("other"))


def serving(issued: Any) -> ssl.SSLContext:
    """A server's context with a certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(issued.certificate_file, issued.key_file)
    return context


def test_the_right_certificate(ca: TestCa, ask: Ask) -> None:
    """The tests below fail for the certificate alone."""
    with FaultyServer(tls=serving(ca.issue("right"))) as server:
        outcomes = ask(server.url, ca_file=ca.file, options=IMPATIENT)
        assert all(isinstance(each, Pass) for each in outcomes)


@pytest.mark.parametrize("wrong", ["foreign", "expired", "early", "system", "name"])
def test_a_wrong_certificate(ca: TestCa, other_ca: TestCa, wrong: str, ask: Ask) -> None:
    """Threat 19: who cannot show the authority's certificate is not asked, and answers nothing."""
    issued = {
        "foreign": lambda: other_ca.issue("foreign"),
        "expired": lambda: ca.issue("expired", begin=-5 * DAY, end=-DAY),
        "early": lambda: ca.issue("early", begin=DAY, end=5 * DAY),
    }.get(wrong, lambda: ca.issue("sound"))()
    with FaultyServer(tls=serving(issued)) as server:
        # The listener is on 127.0.0.1, and this name for it is not in the certificate.
        url = server.url.replace("127.0.0.1", "127.1") if wrong == "name" else server.url
        asked = time.monotonic()
        outcomes = ask(url, ca_file=None if wrong == "system" else ca.file, options=IMPATIENT)
        check(outcomes, one_of(Cause.UNTRUSTED), asked)
        assert server.visits == []
    [detail] = {each.detail for each in outcomes if isinstance(each, Indeterminate)}
    assert {
        "foreign": "comes from a CA that is not trusted here",
        "system": "comes from a CA that is not trusted here",
        "expired": "has expired",
        "early": "is not valid yet",
        "name": "is for another host name",
    }[wrong] in detail


def test_no_tls_where_tls_should_be(ca: TestCa, ask: Ask) -> None:
    """A server that speaks plain HTTP on a TLS port."""
    with FaultyServer(before_reading=lambda visit: visit.send(http(FAIL_BODY, 400))) as server:
        asked = time.monotonic()
        url = server.url.replace("http:", "https:")
        check(ask(url, ca_file=ca.file, options=IMPATIENT), one_of(Cause.UNTRUSTED), asked)


def test_a_handshake_that_never_ends(ca: TestCa, ask: Ask) -> None:
    """A server that accepts and says nothing of TLS."""
    with FaultyServer(before_reading=silence) as server:
        asked = time.monotonic()
        url = server.url.replace("http:", "https:")
        check(ask(url, ca_file=ca.file, options=IMPATIENT), NOBODY | LATE, asked)


def test_a_connection_cut_in_the_handshake(ca: TestCa, ask: Ask) -> None:
    """A proxy that loses its backend."""
    with FaultyServer(before_reading=close) as server:
        asked = time.monotonic()
        url = server.url.replace("http:", "https:")
        check(ask(url, ca_file=ca.file, options=IMPATIENT), NOBODY, asked)


def test_a_server_that_wants_a_certificate_of_the_client(ca: TestCa, ask: Ask) -> None:
    """Without one the handshake is refused; with one there is a verdict."""
    context = serving(ca.issue("mutual"))
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(ca.file)
    with FaultyServer(tls=context) as server:
        asked = time.monotonic()
        outcomes = ask(server.url, ca_file=ca.file, options=IMPATIENT)
        check(outcomes, one_of(Cause.UNTRUSTED, Cause.UNREACHABLE), asked)
        mine = ca.issue("aggregator")
        files: tuple[Path, Path] = (mine.certificate_file, mine.key_file)
        outcomes = ask(server.url, ca_file=ca.file, client_certificate=files, options=IMPATIENT)
        assert all(isinstance(each, Pass) for each in outcomes), outcomes
