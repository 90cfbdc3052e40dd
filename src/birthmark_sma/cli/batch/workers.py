"""Provision chunks of records in several processes, each of which takes a chunk to its commit.

The processes are forked off before any thread runs, so the CA's key reaches them in memory alone.
"""

import gc
import hashlib
import json
import multiprocessing
import os
import queue
import signal
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from multiprocessing.connection import Connection
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Annotated, Any, Self, cast

from pydantic import Field

from birthmark_sma.authority.provisioning.bulk import BulkProvisioner, RegisteredBefore
from birthmark_sma.authority.provisioning.issuance import Provisioned, ProvisioningRequest
from birthmark_sma.cli.batch.records import Record
from birthmark_sma.cli.batch.results import Results
from birthmark_sma.cli.commands.device_files import new_private_key, public_half
from birthmark_sma.errors import BatchInterruptedError
from birthmark_sma.web.api.models import ProvisionRequest, ProvisionResponse
from birthmark_sma.web.middleware.request_body import checked, parse_json
from birthmark_sma.web.problems import InvalidRequestError

CHUNK = 500
"""Records that share one commit."""
_AHEAD = 2
"""Chunks a process that are under way: one at work, one waiting for it."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """A record that did not become a device, and why, as a sentence."""

    line: int
    device_serial: str | None
    problem: str


@dataclass(frozen=True, slots=True)
class Repetition:
    """A record whose serial is registered; whether by an earlier run, the results must tell."""

    line: int
    device_serial: str
    provisioning_id: str
    request_digest: str


@dataclass(slots=True)
class ChunkOutcome:
    """What became of a chunk, once that is durable. `end` is how far the file is read."""

    end: int
    provisioned: int = 0
    results: bytes = field(default=b"", repr=False)
    part: Path | None = None
    repetitions: list[Repetition] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Job:
    """What every process works with."""

    bulk: BulkProvisioner
    results: Results
    make_keys: bool

    def do(self, records: Sequence[Record]) -> ChunkOutcome:
        """Provision a chunk, its results kept before the commit."""
        outcome = ChunkOutcome(records[-1].end)
        asked = []
        for record in records:
            read = _read(record, make_keys=self.make_keys)
            if isinstance(read, Refusal):
                outcome.refusals.append(read)
            else:
                asked.append(read)
        lines: dict[int, bytes] = {}

        def keep(answers: Mapping[int, Provisioned]) -> None:
            lines.update({place: _result(asked[place], answers[place]) for place in answers})
            outcome.part = self.results.keep(list(lines.values()))

        became = self.bulk.provision([each.request for each in asked], keep)
        registered = []
        for place, (each, what) in enumerate(zip(asked, became, strict=True)):
            serial = each.request.device_serial
            if isinstance(what, Provisioned):
                registered.append(lines[place])
            elif isinstance(what, RegisteredBefore):
                outcome.repetitions.append(
                    Repetition(each.line, serial, what.provisioning_id, each.digest)
                )
            else:
                outcome.refusals.append(Refusal(each.line, serial, str(what)))
        outcome.provisioned = len(registered)
        outcome.results = b"".join(registered)
        return outcome


class Workers:
    """The processes. As a context manager, they have ended at its end.

    Each has a pipe of its own, at whose other end a thread waits for it: where a process is killed
    half way through an answer, its pipe ends, and nobody waits for the rest.
    """

    def __init__(self, job: Job, processes: int) -> None:
        self._job = job
        self._count = processes
        self._limit = processes * _AHEAD
        self._processes: list[ForkProcess] = []
        self._idle: queue.SimpleQueue[Connection[Any, Any]] = queue.SimpleQueue()
        self._threads = ThreadPoolExecutor(processes, "batch")

    def __enter__(self) -> Self:
        forking = multiprocessing.get_context("fork")
        for _ in range(self._count):
            ours, theirs = forking.Pipe()
            process = forking.Process(target=_work, args=(self._job, theirs), daemon=True)
            process.start()
            theirs.close()
            self._processes.append(process)
            self._idle.put(ours)
        return self

    def __exit__(self, *exception: object) -> None:
        self._threads.shutdown(cancel_futures=True)
        for _ in self._processes:
            with self._idle.get() as pipe, suppress(OSError):
                pipe.send(None)
        for process in self._processes:
            process.join()

    def provision(self, records: Iterable[Record]) -> Iterator[ChunkOutcome]:
        """Return what became of each chunk, in the order of the records, and read little ahead.

        Raises DatabaseUnavailableError and IssuerExpiredError, and BatchInterruptedError where a
        process was killed.
        """
        under_way: deque[Future[ChunkOutcome]] = deque()
        left = iter(records)
        while chunk := list(islice(left, CHUNK)):
            under_way.append(self._threads.submit(self._ask, chunk))
            if len(under_way) >= self._limit:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()

    def _ask(self, chunk: Sequence[Record]) -> ChunkOutcome:
        pipe = self._idle.get()
        try:
            pipe.send(chunk)
            outcome = pipe.recv()
        except (OSError, EOFError):
            raise BatchInterruptedError from None
        finally:
            self._idle.put(pipe)
        if isinstance(outcome, Exception):
            raise outcome
        return cast(ChunkOutcome, outcome)


# --- in a process of its own


def _work(job: Job, pipe: "Connection[Any, Any]") -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to act on
    # A chunk leaves few cycles and many objects, which need not all be looked through every time.
    gc.freeze()
    gc.set_threshold(100_000)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    while (records := pipe.recv()) is not None:
        try:
            outcome: ChunkOutcome | Exception = job.do(records)
        except Exception as error:
            outcome = error
        pipe.send(outcome)


def _end_with_parent() -> None:
    """End when the parent does: whoever resumes must not meet a process that still commits."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


@dataclass(frozen=True, slots=True)
class _Asked:
    """A record that was read, and what its result says beside the answer."""

    line: int
    request: ProvisioningRequest
    digest: str
    private_key: str | None = field(repr=False)


def _read(record: Record, *, make_keys: bool) -> _Asked | Refusal:
    """Return what a record asks for, or why it is refused."""
    if record.fault is not None:
        return Refusal(record.line, None, record.fault)
    value: Any = record.content
    private_key = None
    try:
        if isinstance(value, bytes):
            value = parse_json(value)
        digest = _digest(value)
        if make_keys and isinstance(value, dict) and not _has_key(value):
            private_key = new_private_key()
            value = value | {"device_public_key": public_half(private_key)}
        request = checked(value, ProvisionRequest).provisioning_request(None, None)
    except InvalidRequestError as error:
        return Refusal(record.line, _serial_of(value), str(error))
    return _Asked(
        record.line, request, digest, None if private_key is None else private_key.decode()
    )


def _digest(value: object) -> str:
    """Return what is the same for the same request, in CSV and in JSON."""
    if isinstance(value, dict):
        value = {name: each for name, each in value.items() if each is not None}
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _has_key(value: Mapping[str, object]) -> bool:
    return value.get("device_public_key") is not None or value.get("csr") is not None


def _serial_of(value: object) -> str | None:
    """Return the serial that a refused record gives, where it can be shown."""
    serial = value.get("device_serial") if isinstance(value, dict) else None
    return serial if isinstance(serial, str) and len(serial) <= 64 else None


class _Result(ProvisionResponse):
    """What the API would answer, and what only a batch has to say."""

    device_serial: str
    request_sha256: str
    device_private_key: Annotated[str | None, Field(repr=False)]


def _result(asked: _Asked, provisioned: Provisioned) -> bytes:
    result = _Result(
        device_serial=asked.request.device_serial,
        **vars(ProvisionResponse.of(provisioned)),
        device_private_key=asked.private_key,
        request_sha256=asked.digest,
    )
    return result.model_dump_json(exclude_none=True).encode() + b"\n"
