"""Profile the server with py-spy under load from 128 connections: `python -m bench --profile`.

py-spy samples the process from outside, 250 times a second. On Linux it needs root, or
`kernel.yama.ptrace_scope = 0`.
"""

import re
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from bench import wrk
from bench.closed import write_bodies
from bench.figures import Report
from bench.options import POSTGRES_OPTIONS, Options
from bench.output import print_table
from bench.parts.stage import Stage
from bench.tables import Table
from birthmark_sma.web.api.validate import PATH
from tests.support.databases.postgres import Postgres

_CONNECTIONS = 128
_TIMES_A_SECOND = 250
_TOP = 15
_LINE = re.compile(r":\d+\)$")
_LAYERS = (
    ("commit and SQL on the wire", ("psycopg/",)),
    ("SQLAlchemy", ("sqlalchemy/",)),
    ("opening tokens, deriving keys", ("protocol/camera_token", "protocol/key_derivation")),
    (
        "parsing JSON and models",
        ("pydantic/", "jiter", "web/middleware/request_body", "web/api/models"),
    ),
    ("HTTP server", ("uvicorn/", "web/transport/protocol")),
    ("routes and answers", ("birthmark_sma/web/", "starlette/", "fastapi/", "json/")),
    ("the pool and its hand-over", ("storage/group_commit", "threading.py")),
    ("judging and other code of its own", ("birthmark_sma/",)),
    ("event loop", ("asyncio/", "uvloop/")),
)


@dataclass(frozen=True, slots=True)
class Sample:
    """A stack that py-spy found `times` times. The outermost frame comes first."""

    thread: str
    frames: tuple[str, ...]
    times: int


def profile(options: Options, console: Console) -> None:
    """Load the server on PostgreSQL and print the time shares of threads, layers and functions.

    Raises SystemExit if py-spy cannot read the process.
    """
    with (
        tempfile.TemporaryDirectory(prefix="sma-bench-") as name,
        Postgres(POSTGRES_OPTIONS) as postgres,
    ):
        folder = Path(name)
        report = Report({}, {})
        stage = Stage(replace(options, parts=()), folder, postgres, report, console.print)
        filled = stage.main()
        bodies = write_bodies(folder / "bodies", filled.bodies)
        with filled.site.serve() as server:
            seconds = max(2, round(options.seconds * 2))
            url = server.url + PATH
            wrk.load(url, bodies, connections=_CONNECTIONS, seconds=1)
            raw = folder / "raw"
            watching = subprocess.Popen(_py_spy(server.process.pid, seconds, raw))
            result = wrk.load(url, bodies, connections=_CONNECTIONS, seconds=seconds + 1)
            if watching.wait() != 0:
                raise SystemExit("py-spy could not watch the server: see above")
        samples = parse_samples(raw.read_text(encoding="utf-8"))
    console.print(f"{result.requests / result.seconds:,.0f} requests/s while watched")
    for table in (by_thread(samples), by_layer(samples), by_function(samples)):
        print_table(table, console)


def _py_spy(pid: int, seconds: int, output: Path) -> list[str]:
    program = Path(sys.executable).with_name("py-spy")
    how = ["--threads", "--nonblocking", "--format", "raw", "--rate", str(_TIMES_A_SECOND)]
    where = ["--pid", str(pid), "--duration", str(seconds), "--output", str(output)]
    return [str(program), "record", *how, *where]


def parse_samples(raw: str) -> list[Sample]:
    """Parse py-spy's raw format: `thread;frame;frame COUNT`, outermost frame first."""
    samples = []
    for line in raw.splitlines():
        stack, _, times = line.rpartition(" ")
        thread, *frames = stack.split(";")
        samples.append(Sample(_thread_name(thread), tuple(frames), int(times)))
    return samples


def by_thread(samples: list[Sample]) -> Table:
    """Return the share of each thread."""
    return _shares("Threads", "thread", [(each.thread, each.times) for each in samples])


def by_layer(samples: list[Sample]) -> Table:
    """Return the share of each layer in each thread."""
    found = [(f"{each.thread}: {_layer(each)}", each.times) for each in samples]
    return _shares("Layers", "thread and layer", found)


def by_function(samples: list[Sample]) -> Table:
    """Return the share of each innermost function. Time in C functions counts for the caller."""
    found = [
        (f"{each.thread}: {_LINE.sub(')', each.frames[-1])}", each.times)
        for each in samples
        if each.frames
    ]
    return _shares("Functions", "thread and function", found)


def _layer(sample: Sample) -> str:
    """Return the layer of the innermost frame that belongs to a layer, or "other"."""
    for frame in reversed(sample.frames):
        for layer, marks in _LAYERS:
            if any(mark in frame for mark in marks):
                return layer
    return "other"


def _thread_name(thread: str) -> str:
    """Return the name in `thread (4711): validation-writer`, or the whole text without a name."""
    return thread.partition("): ")[2] or thread


def _shares(title: str, what: str, found: list[tuple[str, int]]) -> Table:
    counts = Counter[str]()
    for name, times in found:
        counts[name] += times
    total = max(1, counts.total())
    rows = [[name, f"{times / total:.1%}"] for name, times in counts.most_common(_TOP)]
    return Table(title, (what, "share"), rows, words=1)
