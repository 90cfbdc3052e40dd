"""The environment of processes that the checks start, without the developer's own settings."""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_OUTSIDE_SMA = frozenset({"DATABASE_URL", "CA_PASSWORD", "PORT"})


def make_environment() -> dict[str, str]:
    """Return the environment without settings of `sma`, and with this process's module path.

    A process that works in another directory needs that path.
    """
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("SMA_") and name not in _OUTSIDE_SMA
    }
    return environment | {"PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)])}
