"""What a server prints is written by a thread, and nobody waits for it."""

import os
import subprocess
import sys
import time

from birthmark_sma.runtime import background_output
from birthmark_sma.runtime.background_output import BackgroundOutput
from birthmark_sma.web.middleware.request_metrics import LOG_LINES_LEFT_OUT, RequestMetrics

LINE = b"x" * 1_023 + b"\n"


def test_what_is_too_much_is_left_out_and_counted() -> None:
    """Threat 49: a pipe that nobody reads; once somebody does, it says how many are missing."""
    reader, writer = os.pipe()
    output = BackgroundOutput(writer)
    began = time.monotonic()
    for _ in range(20_000):
        output.put(LINE)
    assert time.monotonic() - began < 5
    assert 1_000 < output.left_out < 20_000
    whole = 0
    rest = b""
    while b"were left out" not in rest:
        whole += rest.count(b"\n")
        rest = rest.rpartition(b"\n")[2] + os.read(reader, 65_536)
    assert b"%d lines were left out\n" % output.left_out in rest
    began = time.monotonic()
    output.close()
    assert time.monotonic() - began < 2
    os.close(reader)
    os.close(writer)


def test_closing_waits_for_nobody_for_long() -> None:
    """Threat 31: it ends while the pipe is full, also where something is printed afterwards."""
    reader, writer = os.pipe()
    output = BackgroundOutput(writer)
    for _ in range(200):
        output.put(LINE)
    began = time.monotonic()
    output.close()
    output.put(LINE)
    assert time.monotonic() - began < 3
    os.close(reader)
    os.close(writer)


def test_metrics_have_what_was_left_out() -> None:
    """Of all outputs of the process."""
    reader, writer = os.pipe()
    os.close(reader)  # whatever is written is lost
    output = background_output.open_output(writer)
    output.put(LINE)
    output.close()
    traffic = RequestMetrics()
    traffic.copy_figures()
    traffic.copy_figures()
    assert LOG_LINES_LEFT_OUT.total(traffic.shared_counters.all())[()] == output.left_out == 1
    background_output._outputs.pop(writer)
    os.close(writer)


def test_everything_a_process_prints_goes_that_way() -> None:
    """In order, warnings and tracebacks included, also what is printed last of all."""
    program = (
        "import sys, warnings\n"
        "from birthmark_sma.runtime.background_output import write_in_background\n"
        "write_in_background('%d lines')\n"
        "print('one')\n"
        "print('two', file=sys.stderr)\n"
        "warnings.warn('three')\n"
        "raise SystemExit('four') if len(sys.argv) > 1 else ValueError('five')\n"
    )
    for arguments, last in ([], "ValueError: five"), (["x"], "four"):
        done = subprocess.run(
            [sys.executable, "-c", program, *arguments],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 1
        assert done.stdout == "one\n"
        assert done.stderr.startswith("two\n")
        assert "three" in done.stderr
        assert done.stderr.rstrip().endswith(last)
