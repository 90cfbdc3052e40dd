"""CPU time and memory of processes and all below them."""

import os
import subprocess
import sys
import time

from bench.processes import cpu_seconds, resident_mb, wait_until_calm

BUSY_CHILD = """
import subprocess, sys, time
burn = "import time\\nwhile time.process_time() < 0.4: pass"
subprocess.run([sys.executable, "-c", burn])
held = bytearray(50_000_000)
print("done", flush=True)
time.sleep(60)
"""


def test_a_child_that_ended_is_still_paid_for() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", BUSY_CHILD], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "done\n"
            assert wait_until_calm(process.pid, 5)
            assert 0.4 <= cpu_seconds(process.pid) < 3
            assert 50 < resident_mb(process.pid) < 150
            assert cpu_seconds(os.getpid()) >= cpu_seconds(process.pid), "it is below this one"
        finally:
            process.kill()


def test_what_goes_on_is_not_calm() -> None:
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as process:
        try:
            time.sleep(0.2)
            assert not wait_until_calm(process.pid, 0.5)
        finally:
            process.kill()
