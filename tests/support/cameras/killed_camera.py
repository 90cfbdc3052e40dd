"""A camera in a process of its own that is killed with SIGKILL, at a line of code or after a time.

The process writes each event to a journal at once, and the kernel keeps the data that a killed
process wrote. The random part of its nonces is replaced by zeros, so that a counter that is used
twice gives equal nonces.
"""

import contextlib
import os
import signal
import sys
from dataclasses import dataclass, field
from datetime import UTC, datetime
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
    Renewal,
    bundle_id,
    nonces,
    passphrase,
    start_camera,
)
from birthmark_sma.device.renewal import renewer
from birthmark_sma.protocol.bundle import Bundle
from tests.support import derivation_cost
from tests.support.programs.fork_server import FORKING

ROUND_SECONDS = 60
CAPTURES = 3
_OURS = str(Path(package.__file__).parent)
_HTTP = str(Path(httpx2.__file__).parent)


@dataclass(frozen=True)
class Life:
    """The work of one camera process, and the line before which it is killed."""

    place: Path
    url: str
    serial: str
    journal: Path
    sealed: bool = False
    last_line: int | None = None
    """Send SIGKILL before the n-th counted line. None means never."""
    ours_alone: bool = True
    """Count only lines of birthmark_sma.device. If false, count lines of the HTTP client too."""
    renews: bool = False
    """Renew the certificate between the captures."""
    new_key: bool = True
    """Renew with a new signing key."""
    supersede: bool = True
    """Have the certificate before superseded."""
    patience: float = 20
    """For how many seconds the provisioning is repeated while the authority is away."""


@dataclass
class Journal:
    """The events of a camera, by process, in order."""

    path: Path
    lives: list[list[tuple[str, str]]] = field(default_factory=list)

    def read(self) -> "Journal":
        """Read the journal file into `lives` and return this journal."""
        self.lives = []
        for line in self.path.read_text().splitlines() if self.path.exists() else []:
            event, _, what = line.partition(" ")
            if event == "born":
                self.lives.append([])
            self.lives[-1].append((event, what))
        return self

    def all(self, event: str) -> list[str]:
        """Return the values of all events of one kind."""
        return [what for life in self.lives for each, what in life if each == event]


def live(life: Life, seconds: float | None = None) -> int:
    """Run a camera process and return its exit code. Kill it after `seconds` if given.

    Fails if the process does not end within 60 s.
    """
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

    vars(nonces)["_random_bytes"] = bytes  # bytes(n) is n zero bytes
    derivation_cost.lower(derivation_cost.OF_CAMERAS)
    note("born", os.getpid())
    lines = _Lines(life)
    with contextlib.ExitStack() as stack:
        stack.enter_context(lines)
        enrolment = Enrolment(life.url, life.serial, "Mortal", patience=life.patience)
        sealing = passphrase("a phrase") if life.sealed else UNSEALED
        if life.renews:
            # Every certificate is due, and no earlier life has planned a pause.
            vars(renewer)["renewal_time"] = lambda *_, **__: datetime.min.replace(tzinfo=UTC)
            (life.place / renewer.FILE).unlink(missing_ok=True)
        camera = stack.enter_context(
            start_camera(
                life.place,
                sealing=sealing,
                enrolment=enrolment,
                # The lines of another thread would not be counted.
                renewal=Renewal(automatic=False, supersede=life.supersede, new_key=life.new_key),
            )
        )
        note("started", camera.device_serial)
        for n in range(CAPTURES):
            if n == 1 and life.renews:
                camera.renew_if_due()
                note("certificate", f"{camera.certificate.serial_number:x}")
            bundle = camera.capture(bytes([n]))
            note("nonce", bundle.content.camera_token.nonce.hex())
            camera.queue.put(bundle)
            note("queued", bundle_id(bundle))
            if n:  # not after the first capture, so that both one and two bundles wait
                camera.queue.drain(send)
    note("lines", lines.count)
    (life.journal.with_suffix(".bundle")).write_bytes(bundle.to_json())


class _Lines:
    """Counts executed lines with sys.settrace, and kills the process before the chosen one."""

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
