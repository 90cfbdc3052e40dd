"""`sma serve` in a process that records which functions of src/ are entered.

`checks.call_trace` starts it and controls it by lines on standard input: `start` begins a
recording, `stop` ends it; each is answered on standard error by the recording, as one line of JSON.
Threads that run beside requests (background tasks, the log's writer) are left out, because they
run at any time.

It must never be used to measure speed: recording makes every call slower.
"""

import json
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import birthmark_sma

MARK = "traced calls: "
_SOURCE = f"{Path(birthmark_sma.__file__).parent}/"
_BESIDE_REQUESTS = {
    ("runtime/background_task.py", "BackgroundTask._run"),
    ("runtime/background_output.py", "BackgroundOutput._run"),
}


class Recorder:
    """Records calls of the thread that calls `install`, and of all that start afterwards."""

    def __init__(self) -> None:
        self._calls: list[tuple[str, str]] = []
        self._recording = False
        self._threads: dict[int, bool] = {}

    def install(self) -> None:
        """Begin to watch calls. Nothing is recorded before `start`."""
        threading.setprofile(self._on_event)
        sys.setprofile(self._on_event)

    def start(self) -> list[tuple[str, str]]:
        """Forget what was recorded, and record from now on; return the empty recording."""
        self._calls = []
        self._recording = True
        return self._calls

    def stop(self) -> list[tuple[str, str]]:
        """Return the calls since `start`: file below the package, and qualified name."""
        self._recording = False
        return self._calls

    def _on_event(self, frame: FrameType, event: str, _argument: Any) -> None:
        if not self._recording or event != "call":
            return
        if frame.f_code.co_filename.startswith(_SOURCE) and self._serves_requests(frame):
            self._calls.append(_name(frame))

    def _serves_requests(self, frame: FrameType) -> bool:
        """Say whether the frame's thread works for requests: its outermost function tells."""
        thread = threading.get_ident()
        if thread not in self._threads:
            outermost, above = frame, frame.f_back
            while above is not None:
                if above.f_code.co_filename.startswith(_SOURCE):
                    outermost = above
                above = above.f_back
            self._threads[thread] = _name(outermost) not in _BESIDE_REQUESTS
        return self._threads[thread]


def _name(frame: FrameType) -> tuple[str, str]:
    code = frame.f_code
    return code.co_filename.removeprefix(_SOURCE), code.co_qualname


def _obey(recorder: Recorder) -> None:
    """Read orders until standard input ends."""
    sys.setprofile(None)  # this thread serves no request
    for line in sys.stdin:
        calls = recorder.start() if line.strip() == "start" else recorder.stop()
        print(MARK + json.dumps(calls), file=sys.stderr, flush=True)


def main() -> None:
    """Serve as `sma serve` does, with the arguments of this program."""
    recorder = Recorder()
    recorder.install()
    threading.Thread(target=_obey, args=(recorder,), daemon=True).start()
    from birthmark_sma.__main__ import run  # noqa: PLC0415 - threads that it starts are watched

    run()


if __name__ == "__main__":
    main()
