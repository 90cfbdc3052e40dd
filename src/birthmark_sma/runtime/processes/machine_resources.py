"""Read how many CPU cores and how much memory this process may use.

`sma serve` calls it to choose its number of processes. Containers limit both with cgroups, which
the usual functions of Python do not see. This module only reads files; what it cannot read does not
limit anything.
"""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

_ROOT = Path("/")
_NO_LIMIT = 1 << 60  # cgroup v1 writes a number near 2^63 where there is no limit


def usable_cores(root: Path = _ROOT) -> int:
    """Return the number of cores of the CPU affinity, or fewer if a cgroup has a smaller quota.

    A part of a core does not count, except that the result is at least 1.
    """
    if sys.platform == "linux":
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    quotas = [int(quota) for quota in _quotas(root)]
    return max(1, min([cores, *quotas]))


def available_memory(root: Path = _ROOT) -> int | None:
    """Return the bytes of memory that new processes may use; None if the system does not say.

    The least of what the machine has available and what each cgroup leaves.
    """
    found = []
    for line in _read(root / "proc/meminfo").splitlines():
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            found.append(int(value.split()[0]) * 1024)
    for group in _groups(root, "memory"):
        limit = _number(group / "memory.max") or _number(group / "memory.limit_in_bytes")
        if limit is None or limit >= _NO_LIMIT:
            continue
        used = _number(group / "memory.current") or _number(group / "memory.usage_in_bytes") or 0
        found.append(max(0, limit - used + _page_cache(group)))
    return min(found, default=None)


def _quotas(root: Path) -> Iterator[float]:
    """Yield the CPU quota of each cgroup that has one, in cores."""
    for group in _groups(root, "cpu"):
        quota, _, period = _read(group / "cpu.max").partition(" ")  # cgroup v2
        if not quota:
            quota = _read(group / "cpu.cfs_quota_us")
            period = _read(group / "cpu.cfs_period_us")
        if quota.strip().isdigit() and period.strip().isdigit() and int(period):
            yield int(quota) / int(period)


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """Yield the directories of this process's cgroup for a controller, and of all its parents.

    In a container, the path may be that of the host, which does not exist here. The parents, up to
    the mounted root, then still have the container's limits.
    """
    mounted = root / "sys/fs/cgroup"
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, _, names_and_path = line.partition(":")
        names, _, path = names_and_path.partition(":")
        if not names:  # cgroup v2
            tops = [mounted]
        elif controller in names.split(","):
            tops = [mounted / controller, mounted / names]
        else:
            continue
        own = Path(path.lstrip("/"))
        for top in tops:
            yield from (top / each for each in (own, *own.parents) if ".." not in each.parts)


def _page_cache(group: Path) -> int:
    """Return the bytes of a cgroup that the kernel frees when they are needed."""
    for line in _read(group / "memory.stat").splitlines():
        name, _, value = line.partition(" ")
        if name in {"inactive_file", "total_inactive_file"}:
            return int(value)
    return 0


def _number(file: Path) -> int | None:
    text = _read(file).strip()
    return int(text) if text.isdigit() else None


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="ascii")
    except OSError:
        return ""
