"""Find nginx: the system's, or the one that `make setup-nginx` unpacked into .cache."""

import shutil
from pathlib import Path

_UNPACKED = Path(__file__).parents[3] / ".cache" / "nginx" / "usr" / "sbin"
_SYSTEM = "/usr/sbin:/usr/local/sbin:/opt/homebrew/bin"


def nginx_program() -> str:
    """Return the path of nginx. Fails with the command that gets one."""
    found = shutil.which("nginx") or shutil.which("nginx", path=f"{_SYSTEM}:{_UNPACKED}")
    assert found is not None, "nginx is missing. Type: make setup-nginx"
    return found
