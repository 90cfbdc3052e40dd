"""A camera in a process of its own that is killed with SIGKILL: at a line of code, or at a time.

What it did stands in a journal, written the moment it happened: the kernel keeps what a killed
process wrote. The random part is taken out of its nonces, so that a count used twice would show.
"""

import contextlib
import os
import signal
import sys
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType
from typing import Any

import httpx2

import birthmark_sma.device as package
from birthmark_sma.device import (
    UNSEALED,
    Delivery,
    Enrolment,
    bundle_id,
    nonces,
    passphrase,
    start_camera,
)
from birthmark_sma.protocol.bundle import Bundle
from tests.support import derivation_cost
from tests.support.programs.fork_server import FORKING

ROUND_SECONDS = 60
CAPTURES = 3
_OURS = str(Path(package.__file__).parent)
_HTTP = str(Path(httpx2.__file__).parent)


@dataclass(frozen=True)
class Life:
    """What a camera is to do while it lives, and when its life ends."""

    place: Path
    url: str
    serial: str
    journal: Path
    sealed: bool = False
    last_line: int | None = None
    """SIGKILL before the nth line that this package, or the HTTP client, runs."""
    ours_alone: bool = True
    """Whether the lines of this package alone are counted."""


@dataclass
class Journal:
    """What was seen of a camera: of all its lives, in order."""

    path: Path
    lives: list[list[tuple[str, str]]] = field(default_factory=list)

    def read(self) -> "Journal":
        """Read what was written so far."""
        self.lives = []
        for line in self.path.read_text().splitlines() if self.path.exists() else []:
            event, _, what = line.partition(" ")
            if event == "born":
                self.lives.append([])
            self.lives[-1].append((event, what))
        return self

    def all(self, event: str) -> list[str]:
        """Everything of one kind."""
        return [what for life in self.lives for each, what in life if each == event]


def live(life: Life, seconds: float | None = None) -> int:
    """Run a life to its end, at the latest after `seconds`, and return its exit code."""
    process: BaseProcess = FORKING.Process(target=_live, args=(life,))
    process.start()
    process.join(ROUND_SECONDS if seconds is None else seconds)
    if seconds is not None:
        process.kill()
        process.join(ROUND_SECONDS)
    code = process.exitcode
    if code is None:
        process.kill()
        process.join()
        raise AssertionError("a camera came to no end")
    process.close()
    return code


def _live(life: Life) -> None:
    journal = os.open(life.journal, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def note(event: str, what: object) -> None:
        os.write(journal, f"{event} {what}\n".encode())

    def send(bundle: Bundle) -> Delivery:
        note("sent", bundle_id(bundle))
        return Delivery.TAKEN

    vars(nonces)["_random_bytes"] = bytes
    derivation_cost.lower(derivation_cost.OF_CAMERAS)
    note("born", os.getpid())
    lines = _Lines(life)
    with contextlib.ExitStack() as stack:
        stack.enter_context(lines)
        enrolment = Enrolment(life.url, life.serial, "Mortal", patience=20)
        sealing = passphrase("a phrase") if life.sealed else UNSEALED
        camera = stack.enter_context(start_camera(life.place, sealing=sealing, enrolment=enrolment))
        note("started", camera.device_serial)
        for n in range(CAPTURES):
            bundle = camera.capture(bytes([n]))
            note("nonce", bundle.content.camera_token.nonce.hex())
            camera.queue.put(bundle)
            note("queued", bundle_id(bundle))
            if n:  # so that now one waits, and now two
                camera.queue.drain(send)
    note("lines", lines.count)
    (life.journal.with_suffix(".bundle")).write_bytes(bundle.to_json())


class _Lines:
    """Counts the lines that run, and ends the process before one of them."""

    def __init__(self, life: Life) -> None:
        self.count = 0
        self._last = life.last_line
        self._folders = (_OURS,) if life.ours_alone else (_OURS, _HTTP)

    def __enter__(self) -> None:
        sys.settrace(self._call)

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)

    def _call(self, frame: FrameType, *_: Any) -> Any:
        return self._line if frame.f_code.co_filename.startswith(self._folders) else None

    def _line(self, _: FrameType, event: str, __: Any) -> Any:
        if event == "line":
            self.count += 1
            if self.count == self._last:
                os.kill(os.getpid(), signal.SIGKILL)
        return self._line
