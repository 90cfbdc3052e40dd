"""Provision chunks of records in several worker processes. Each process commits its own chunks.

`batch/run.py` starts them. The processes must be forked before any thread runs. Forking passes the
CA's key in memory: it must never go through a pipe or a file.
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
from dataclasses import dataclass, field, replace
from itertools import islice
from multiprocessing.connection import Connection
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Annotated, Any, Self, cast

from pydantic import Field

from birthmark_sma.authority.acts.actor import Actor
from birthmark_sma.authority.provisioning.bulk import BulkProvisioner, RegisteredBefore
from birthmark_sma.authority.provisioning.issuance import Provisioned, ProvisioningRequest
from birthmark_sma.cli.batch.records import Record
from birthmark_sma.cli.batch.results import Results
from birthmark_sma.cli.commands.device_files import new_private_key, public_half
from birthmark_sma.errors import BatchInterruptedError
from birthmark_sma.web.api.models.provisioning import ProvisionRequest, ProvisionResponse
from birthmark_sma.web.middleware.request_body import checked, parse_json
from birthmark_sma.web.problems import InvalidRequestError

CHUNK = 500
"""Records that share one commit."""
_AHEAD = 2
"""Chunks under way for each process: one at work and one waiting, so that no process idles."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """A record that did not become a device. `problem` says why, as a sentence."""

    line: int
    device_serial: str | None
    problem: str


@dataclass(frozen=True, slots=True)
class Repetition:
    """A record whose serial is registered. The results file shows if an earlier run did that."""

    line: int
    device_serial: str
    provisioning_id: str
    request_digest: str


@dataclass(slots=True)
class ChunkOutcome:
    """The outcome of a chunk, after its commit. `end` is the file offset behind it, in bytes.

    `part` is the chunk's pending file, which the parent deletes after it wrote `results`.
    """

    end: int
    provisioned: int = 0
    results: bytes = field(default=b"", repr=False)
    part: Path | None = None
    repetitions: list[Repetition] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Job:
    """The work of a process. It is inherited by the fork, and never sent through a pipe."""

    bulk: BulkProvisioner
    results: Results
    make_keys: bool
    actor: Actor

    def do(self, records: Sequence[Record]) -> ChunkOutcome:
        """Provision a chunk. Write its results durably before the commit.

        So a crash after the commit loses no result: `Results.recover` finds them.
        """
        outcome = ChunkOutcome(records[-1].end)
        asked = []
        for record in records:
            read = _read(record, self.actor, make_keys=self.make_keys)
            if isinstance(read, Refusal):
                outcome.refusals.append(read)
            else:
                asked.append(read)
        lines: dict[int, bytes] = {}

        def keep(answers: Mapping[int, Provisioned]) -> None:
            before = outcome.part
            lines.clear()
            lines.update({place: _result(asked[place], answers[place]) for place in answers})
            outcome.part = self.results.keep(list(lines.values()))
            if before is not None:  # those answers were not registered
                before.unlink()

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
    """The worker processes. The context manager starts them and waits until they have ended.

    Each process has its own pipe, and a thread of the parent waits at the other end. If a process
    is killed in the middle of a response, its pipe ends, and the thread raises an error instead of
    waiting for ever.
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
            # The parent must not keep the child's end open, or the pipe would never end.
            theirs.close()
            self._processes.append(process)
            self._idle.put(ours)
        return self

    def __exit__(self, *exception: object) -> None:
        # First the threads, because a thread that has taken a pipe puts it back only at its end.
        self._threads.shutdown(cancel_futures=True)
        for _ in self._processes:
            with self._idle.get() as pipe, suppress(OSError):
                pipe.send(None)
        for process in self._processes:
            process.join()

    def provision(self, records: Iterable[Record]) -> Iterator[ChunkOutcome]:
        """Yield the outcome of each chunk, in the order of the records.

        Reads at most `_AHEAD` chunks ahead for each process. Raises DatabaseUnavailableError,
        IssuerExpiredError, and BatchInterruptedError if a process was killed.
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
            self._idle.put(pipe)  # also after an error, because __exit__ takes every pipe
        if isinstance(outcome, Exception):
            raise outcome
        return cast(ChunkOutcome, outcome)


# --- in a process of its own


def _work(job: Job, pipe: "Connection[Any, Any]") -> None:
    # A terminal sends Ctrl-C to the whole process group. The parent handles it and ends the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # A chunk creates many objects and few reference cycles, so frequent collections only cost time.
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
    """End this process when the parent ends.

    A resumed run must not meet a process of the old run that still commits.
    """
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)  # sys.exit would end only this thread


@dataclass(frozen=True, slots=True)
class _Asked:
    """A valid record, and the fields that its result has in addition to the API's response."""

    line: int
    request: ProvisioningRequest
    digest: str
    private_key: str | None = field(repr=False)


def _read(record: Record, actor: Actor, *, make_keys: bool) -> _Asked | Refusal:
    """Return the request of a record, or its refusal. Make a key pair if `make_keys` asks for it.

    The digest is taken before the key is made, so that the same line has the same digest in
    a resumed run.
    """
    if record.fault is not None:
        return Refusal(record.line, None, record.fault)
    value: Any = record.content
    private_key = None
    try:
        if isinstance(value, bytes):
            value = parse_json(value)
        digest = _digest(value)
        keys = ("device_public_key", "csr")
        if make_keys and isinstance(value, dict) and all(value.get(k) is None for k in keys):
            private_key = new_private_key()
            value = value | {"device_public_key": public_half(private_key)}
        asked = checked(value, ProvisionRequest).provisioning_request(None, None)
        request = replace(asked, actor=actor)
    except InvalidRequestError as error:
        return Refusal(record.line, _serial_of(value), str(error))
    return _Asked(
        record.line, request, digest, None if private_key is None else private_key.decode()
    )


def _digest(value: object) -> str:
    """Return a SHA-256 digest, in hex, that is equal for equal requests in CSV and in JSON.

    CSV leaves empty columns out, so JSON fields with the value null are left out too.
    """
    if isinstance(value, dict):
        value = {name: each for name, each in value.items() if each is not None}
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _serial_of(value: object) -> str | None:
    """Return the serial of a refused record, or None if it is no text of up to 64 characters."""
    serial = value.get("device_serial") if isinstance(value, dict) else None
    return serial if isinstance(serial, str) and len(serial) <= 64 else None


class _Result(ProvisionResponse):
    """A line of the results file: the response of the API, and three fields of a batch."""

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
