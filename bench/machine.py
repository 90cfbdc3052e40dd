"""Describe the machine of a run, so that a reader can judge the figures."""

import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import psycopg

TOP = Path(__file__).parents[1]


def describe(postgres_url: str) -> dict[str, str]:
    """Return time, commit, processor, cores, memory, kernel and versions, as texts."""
    with psycopg.connect(postgres_url) as connection:
        postgres_version = connection.info.parameter_status("server_version") or "unknown"
    return {
        "measured": datetime.now(UTC).isoformat(" ", "minutes"),
        "commit": _commit(),
        "processor": _processor(),
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 1e9:.0f} GB",
        "kernel": f"{platform.system()} {platform.release()}",
        "Python": platform.python_version(),
        "PostgreSQL": postgres_version,
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.machine()


def _commit() -> str:
    described = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12"],
        cwd=TOP,
        capture_output=True,
        text=True,
        check=False,
    )
    return described.stdout.strip() or "unknown"
