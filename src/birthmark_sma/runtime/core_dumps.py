"""Disable core dumps for processes that hold keys in memory.

`sma serve` and its worker processes call this before they open the authority.
"""

import contextlib
import ctypes
import resource
import sys

_PR_SET_DUMPABLE = 4  # linux/prctl.h


def forbid_core_dumps() -> None:
    """Disable core files, and on Linux also access to this process by others of the same user.

    After this, a debugger or profiler on Linux must run as root. Errors of the system are ignored:
    the server then runs without this protection.
    """
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
