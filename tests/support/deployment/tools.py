"""Find nginx, promtool and systemd-analyze: the system's, or those that the Makefile unpacked.

`make setup-deployment-tools` unpacks Debian's packages into .cache, so that no service starts.
"""

import os
import shutil
import subprocess
from pathlib import Path

_UNPACKED = Path(__file__).parents[3] / ".cache" / "deployment-tools"
_SYSTEM = "/usr/sbin:/usr/local/sbin:/opt/homebrew/bin"
_SECONDS = 60


def tool(name: str) -> str:
    """Return the path of a program. Fails with the command that gets it."""
    unpacked = f"{_UNPACKED / 'usr' / 'sbin'}:{_UNPACKED / 'usr' / 'bin'}"
    found = shutil.which(name) or shutil.which(name, path=f"{_SYSTEM}:{unpacked}")
    assert found is not None, f"{name} is missing. Type: make setup-deployment-tools"
    return found


def run_tool(name: str, *arguments: str, **environ: str) -> "subprocess.CompletedProcess[str]":
    """Run a program to its end, with standard error in its output."""
    own = os.environ | environ
    program = tool(name)
    if program.startswith(str(_UNPACKED)):  # systemd-analyze has a library of its own
        libraries = (str(each) for each in _UNPACKED.glob("usr/lib/*/systemd"))
        own["LD_LIBRARY_PATH"] = ":".join(libraries)
    return subprocess.run(
        [program, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=_SECONDS,
        check=False,
        env=own,
    )
