"""One caller cannot starve the others: a flood of batches or of forged renewals, and single tokens.

`make soak` also measures the latency of the single tokens, and a burst of many times the capacity,
and prints the numbers.
"""

import asyncio
import json
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median
from urllib.parse import urlsplit

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding

from tests.end_to_end.conftest import FEW_TABLES
from tests.support.access_keys import bearer, create_known_key, start_with_keys
from tests.support.cameras.camera import VALIDATE, Camera, new_key, wire
from tests.support.cameras.renewal import RENEW, RenewingDevice
from tests.support.databases.postgres import Postgres
from tests.support.programs.flood import Flood, flooding
from tests.support.programs.load import Answer, Connection
from tests.support.programs.running import Running, new_serial, start
from tests.support.soak import tell, times

BATCH = f"{VALIDATE}/batch"
TOKENS = 1_000
BATCHES = times(10, 40)
ROUNDS = 3
CONNECTIONS = 4  # of the caller with single tokens
PAUSE_SECONDS = 0.02
SINGLES = times(20, 150)  # on each connection, in each round
PATIENCE_SECONDS = 5.0


@dataclass(frozen=True)
class Scene:
    """A server that asks for keys, three keys, a camera, and a file of batches of its tokens."""

    running: Running
    provision: str
    hog: str
    other: str
    camera: Camera
    batches: Path


def open_scene(folder: Path, database_url: str) -> Scene:
    """Start a server."""
    running, keys = start_with_keys(folder / "data", database_url, **FEW_TABLES)
    other = create_known_key(running, "other", "--scope", "validate")
    with running.client(headers=bearer(keys["provision"])) as client:
        camera = Camera.provisioned(client, new_serial())
    batches = folder / "batches"
    with batches.open("w", encoding="ascii") as file:
        for _ in range(BATCHES):
            tokens = [wire(camera.token()) for _ in range(TOKENS)]
            print(json.dumps({"tokens": tokens}, separators=(",", ":")), file=file)
    return Scene(running, keys["provision"], keys["validate"], other, camera, batches)


@pytest.fixture
def scene(database_url: str, tmp_path: Path) -> Iterator[Scene]:
    opened = open_scene(tmp_path, database_url)
    with opened.running.server:
        yield opened


def flooded(scene: Scene, connections: int = 16) -> AbstractContextManager[Flood]:
    """Flood the server with the batches of one key."""
    return flooding(
        scene.running.server.url, BATCH, scene.batches, key=scene.hog, connections=connections
    )


async def _singles(scene: Scene, count: int) -> list[Answer]:
    answers = []
    key = "".join(f"{name}: {value}\r\n" for name, value in bearer(scene.other).items())

    async def send() -> None:
        connection = await Connection.open(scene.running.server.url)
        for _ in range(count):
            body = json.dumps(wire(scene.camera.token())).encode()
            answers.append(await connection.ask("POST", VALIDATE, body, key))
            await asyncio.sleep(PAUSE_SECONDS)
        connection.close()

    async with asyncio.TaskGroup() as group:
        for _ in range(CONNECTIONS):
            group.create_task(send())
    return answers


def send_singles(scene: Scene, count: int) -> list[Answer]:
    """Send single tokens of the other key, `count` on each connection."""
    return asyncio.run(_singles(scene, count))


def part(answers: Sequence[Answer], share: float) -> float:
    """Return the time in seconds that a share of the answers do not exceed."""
    ordered = sorted(answer.seconds for answer in answers)
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)]


def latencies(answers: Sequence[Answer]) -> str:
    """Describe the latencies of answers."""
    p50, p95, p99 = (part(answers, share) * 1e3 for share in (0.5, 0.95, 0.99))
    return f"p50 {p50:.0f} ms, p95 {p95:.0f} ms, p99 {p99:.0f} ms of {len(answers)}"


def verdicts(answers: Sequence[Answer]) -> set[tuple[int, str]]:
    """Return the statuses with their verdicts."""
    return {(each.status, each.json().get("validation_result")) for each in answers}


def test_a_flood_of_batches_starves_nobody(scene: Scene) -> None:
    """Nobody else gets 503, and nobody waits for the backlog of another."""
    rounds = []
    with flooded(scene) as flood:
        for _ in range(ROUNDS):
            answers = send_singles(scene, SINGLES)
            assert verdicts(answers) == {(200, "PASS")}
            rounds.append(part(answers, 0.99))
    assert median(rounds) < PATIENCE_SECONDS
    assert flood.statuses.keys() <= {200, 503}
    assert flood.statuses[200] > 0


@pytest.fixture
def forged_renewals(scene: Scene, tmp_path: Path) -> Path:
    """Return a file of renewals with wrong signatures, of one device and of an unknown one."""
    with scene.running.client(headers=bearer(scene.provision)) as client:
        device = RenewingDevice.provisioned(client)
    body = device.request(sign_with=new_key())
    unknown = replace(device, certificate=self_signed(device))
    file = tmp_path / "renewals"
    bodies = [body, unknown.request(sign_with=new_key())]
    file.write_text("".join(json.dumps(each) + "\n" for each in bodies), encoding="ascii")
    return file


def self_signed(device: RenewingDevice) -> str:
    """Return a certificate that no authority has issued, as PEM."""
    name, now = device.loaded.subject, datetime.now(UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name)
    builder = builder.public_key(device.key.public_key()).serial_number(7)
    builder = builder.not_valid_before(now).not_valid_after(now + timedelta(days=9))
    return builder.sign(device.key, SHA256()).public_bytes(Encoding.PEM).decode()


def test_a_flood_of_forged_renewals_starves_nobody(scene: Scene, forged_renewals: Path) -> None:
    """Nobody needs an access key for them. The device itself can still renew meanwhile."""
    with scene.running.client(headers=bearer(scene.provision)) as client:
        device = RenewingDevice.provisioned(client)
    url = scene.running.server.url
    alone = [part(send_singles(scene, SINGLES), 0.99) for _ in range(ROUNDS)]
    rounds = []
    with flooding(url, RENEW, forged_renewals) as flood:
        for _ in range(ROUNDS):
            answers = send_singles(scene, SINGLES)
            assert verdicts(answers) == {(200, "PASS")}
            rounds.append(part(answers, 0.99))
        with scene.running.client() as client:
            device.renewed(client)
    slow, slower = median(alone) * 1e3, median(rounds) * 1e3
    tell(f"{flood.sent_a_second:.0f} forged renewals/s: {flood.statuses}")
    tell(f"99 of 100 single tokens within {slow:.0f} ms alone, {slower:.0f} ms in the flood")
    assert median(rounds) < PATIENCE_SECONDS
    assert flood.statuses.keys() <= {403, 429, 503}


async def _refused_head(url: str, tokens: Sequence[bytes]) -> bytes:
    """Return the response to the head of a batch, whose body never comes, in a full pool."""
    place = urlsplit(url)
    fillers = [await Connection.open(url) for _ in tokens]
    asked = [
        asyncio.create_task(each.ask("POST", VALIDATE, body))
        for each, body in zip(fillers, tokens, strict=True)
    ]
    await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)  # one that had no room
    reader, writer = await asyncio.open_connection(place.hostname, place.port)
    head = f"POST {BATCH} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    writer.write(f"{head}Content-Length: 184012\r\n\r\n".encode())
    said = await reader.readuntil(b"\r\n\r\n")
    writer.close()
    await asyncio.wait(asked)
    return said


def test_a_batch_without_room_is_refused_before_its_body(tmp_path: Path) -> None:
    """The body of this one is never sent, so it cannot have been read or parsed."""
    running = start(tmp_path / "data", "sqlite:", SMA_POOL_LIMIT="2", **FEW_TABLES)
    with running.server:
        with running.client() as client:
            camera = Camera.provisioned(client, new_serial())
        tokens = [json.dumps(wire(camera.token())).encode() for _ in range(6)]
        file = running.database_url.removeprefix("sqlite:///")
        with closing(sqlite3.connect(file, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            said = asyncio.run(_refused_head(running.server.url, tokens))
            other.execute("ROLLBACK")
    assert said.startswith(b"HTTP/1.1 503 ")
    assert b"retry-after: " in said.lower()


@pytest.mark.measured
def test_the_time_of_single_tokens_in_a_flood(own_postgres: Postgres, tmp_path: Path) -> None:
    """All are answered, and 99 of 100 within 250 ms: the median of three rounds."""
    scene = open_scene(tmp_path, own_postgres.url)
    with scene.running.server:
        alone = send_singles(scene, SINGLES)
        rounds = []
        for _ in range(ROUNDS):
            with flooded(scene) as flood:
                answers = send_singles(scene, SINGLES)
            assert verdicts(answers) == {(200, "PASS")}
            rounds.append(part(answers, 0.99))
            tell(f"single tokens alone: {latencies(alone)}; in a flood: {latencies(answers)}")
            tell(f"{flood.sent_a_second:.0f} batches/s, {flood.accepted_a_second:.1f} accepted")
    assert median(rounds) < 0.25


@pytest.mark.measured
def test_a_burst_of_many_times_the_capacity(own_postgres: Postgres, tmp_path: Path) -> None:
    """Probes are answered within 200 ms, the accepted work goes on, and then all is as before."""
    scene = open_scene(tmp_path, own_postgres.url)
    with scene.running.server:
        with flooded(scene, 2) as calm:
            before = asyncio.run(_probe(scene, 10.0))
        with flooded(scene, 400) as burst:
            probes = asyncio.run(_probe(scene, 15.0))
        ended = time.monotonic()
        while part(send_singles(scene, 1), 1) > 0.2:
            assert time.monotonic() - ended < 5
        recovered = time.monotonic() - ended
    live = [probe for probe in probes if probe.status == 200]
    capacity = calm.accepted_a_second
    tell(f"live before: {latencies(before)}; in the burst: {latencies(live)}")
    tell(f"capacity {capacity:.1f} batches/s, {burst.sent_a_second / capacity:.0f} x offered")
    tell(f"{burst.accepted_a_second / capacity:.2f} x accepted, recovered after {recovered:.1f} s")
    assert len(live) == len(probes)
    assert part(live, 0.95) < 0.2
    assert burst.accepted_a_second >= 0.8 * capacity


async def _probe(scene: Scene, seconds: float) -> list[Answer]:
    """Ask for /health/live ten times a second, on a connection of its own each time."""
    answers = []
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        began = time.perf_counter()
        connection = await Connection.open(scene.running.server.url)
        answer = await connection.ask("GET", "/health/live")
        connection.close()
        answers.append(Answer(answer.status, answer.body, time.perf_counter() - began))
        await asyncio.sleep(0.1)
    return answers
