"""A caller that sends without pause and without regard to refusals, in a process of its own.

`flooding` starts it. The program sends the bodies of a file, one on each line, again and again, and
prints one JSON object at its end: `Flood`.
"""

import asyncio
import json
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path

import uvloop

from tests.support.programs.load import BrokenConnectionError, Connection

_END_SECONDS = 60


@dataclass
class Flood:
    """The result of a flood, which is complete after the block."""

    statuses: dict[int, int] = field(default_factory=dict)
    """The number of responses by status; 0 for connections that broke."""
    seconds: float = 0.0

    @property
    def accepted_a_second(self) -> float:
        """The number of responses with status 200 in a second."""
        return self.statuses.get(200, 0) / self.seconds

    @property
    def sent_a_second(self) -> float:
        """The number of requests in a second."""
        return sum(self.statuses.values()) / self.seconds


@contextmanager
def flooding(
    url: str, path: str, bodies: Path, *, key: str = "", connections: int = 16
) -> Iterator[Flood]:
    """Flood a server during the block. The block begins with the first responses."""
    arguments = (url, path, str(bodies), str(connections))
    flood = Flood()
    process = subprocess.Popen(
        (sys.executable, "-m", "tests.support.programs.flood", *arguments),
        cwd=Path(__file__).parents[3],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(f"{key}\n")  # not among the arguments, which everybody can read
        process.stdin.flush()
        assert process.stdout.readline()
        yield flood
        process.send_signal(signal.SIGTERM)
        said, _ = process.communicate(timeout=_END_SECONDS)
        result = json.loads(said)
        flood.statuses = {int(status): n for status, n in result["statuses"].items()}
        flood.seconds = result["seconds"]
    finally:
        process.kill()
        process.wait()


async def _flood(url: str, path: str, bodies: list[bytes], connections: int, key: str) -> None:
    statuses: Counter[int] = Counter()
    following = cycle(bodies)
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    credentials = f"Authorization: Bearer {key}\r\n" if key else ""

    async def send() -> None:
        while not ended.is_set():
            with suppress(BrokenConnectionError):
                connection = await Connection.open(url)
                while not ended.is_set():
                    answer = await connection.ask("POST", path, next(following), credentials)
                    statuses[answer.status] += 1
                connection.close()
                return
            statuses[0] += 1
            await asyncio.sleep(0.05)

    began = time.monotonic()
    tasks = [asyncio.create_task(send()) for _ in range(connections)]
    while not statuses:
        await asyncio.sleep(0.01)
    print("begun", flush=True)  # noqa: T201  the protocol of `flooding`
    await ended.wait()
    seconds = time.monotonic() - began
    result = json.dumps({"statuses": statuses, "seconds": seconds})
    await asyncio.wait(tasks, timeout=_END_SECONDS / 2)
    print(result)  # noqa: T201


if __name__ == "__main__":
    lines = Path(sys.argv[3]).read_bytes().splitlines()
    uvloop.run(_flood(sys.argv[1], sys.argv[2], lines, int(sys.argv[4]), sys.stdin.readline()[:-1]))
