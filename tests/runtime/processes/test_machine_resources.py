"""What a machine and its cgroups allow, read from copies of the files that Linux has."""

import os
from pathlib import Path

import pytest

from birthmark_sma.runtime.processes.machine_resources import available_memory, usable_cores

V1_NO_LIMIT = "9223372036854771712"


@pytest.fixture
def eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the affinity of this process be eight cores."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))


def write(root: Path, **files: str) -> None:
    """Write files, named by their paths with __ for each slash and _dot_ for each dot."""
    for name, content in files.items():
        file = root / name.replace("__", "/").replace("_dot_", ".")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{content}\n", encoding="ascii")


@pytest.mark.usefixtures("eight_cores")
def test_without_cgroups_the_affinity_decides(tmp_path: Path) -> None:
    """There may be no /proc and no /sys at all."""
    assert usable_cores(tmp_path) == 8
    assert available_memory(tmp_path) is None


@pytest.mark.usefixtures("eight_cores")
@pytest.mark.parametrize(
    ("quota", "cores"),
    [("200000 100000", 2), ("350000 100000", 3), ("50000 100000", 1), ("max 100000", 8)],
)
def test_a_quota_of_cgroup_v2(tmp_path: Path, quota: str, cores: int) -> None:
    """A part of a core does not count."""
    write(tmp_path, proc__self__cgroup="0::/", sys__fs__cgroup__cpu_dot_max=quota)
    assert usable_cores(tmp_path) == cores


@pytest.mark.usefixtures("eight_cores")
def test_a_quota_of_a_parent(tmp_path: Path) -> None:
    """As systemd has it: the slice is limited, and the service in it is not."""
    write(
        tmp_path,
        proc__self__cgroup="0::/a.slice/b.service",
        sys__fs__cgroup__a_dot_slice__cpu_dot_max="300000 100000",
        sys__fs__cgroup__a_dot_slice__b_dot_service__cpu_dot_max="max 100000",
    )
    assert usable_cores(tmp_path) == 3


@pytest.mark.usefixtures("eight_cores")
def test_a_quota_of_cgroup_v1(tmp_path: Path) -> None:
    """In a container the path may be that of the host; the limits are at the mounted root."""
    write(
        tmp_path,
        proc__self__cgroup="4:cpu,cpuacct:/docker/0123\n3:memory:/docker/0123\n0::/",
        sys__fs__cgroup__cpu__cpu_dot_cfs_quota_us="400000",
        sys__fs__cgroup__cpu__cpu_dot_cfs_period_us="100000",
    )
    assert usable_cores(tmp_path) == 4
    write(tmp_path, sys__fs__cgroup__cpu__cpu_dot_cfs_quota_us="-1")
    assert usable_cores(tmp_path) == 8


def test_the_memory_of_the_machine_and_of_its_cgroup(tmp_path: Path) -> None:
    """The lesser of both. What the cgroup holds as a cache of files can be freed."""
    write(tmp_path, proc__meminfo="MemTotal: 9000 kB\nMemAvailable:    8000 kB\nBuffers: 1 kB")
    assert available_memory(tmp_path) == 8_000 * 1024
    write(
        tmp_path,
        proc__self__cgroup="0::/",
        sys__fs__cgroup__memory_dot_max="5000000",
        sys__fs__cgroup__memory_dot_current="3000000",
        sys__fs__cgroup__memory_dot_stat="anon 1\ninactive_file 1500000\nactive_file 7",
    )
    assert available_memory(tmp_path) == 3_500_000
    write(tmp_path, sys__fs__cgroup__memory_dot_max="max")
    assert available_memory(tmp_path) == 8_000 * 1024


def test_the_memory_of_cgroup_v1(tmp_path: Path) -> None:
    """A number near 2^63 means that there is no limit."""
    write(
        tmp_path,
        proc__meminfo="MemAvailable: 8000 kB",
        proc__self__cgroup="4:memory:/",
        sys__fs__cgroup__memory__memory_dot_limit_in_bytes="5000000",
        sys__fs__cgroup__memory__memory_dot_usage_in_bytes="4000000",
    )
    assert available_memory(tmp_path) == 1_000_000
    write(tmp_path, sys__fs__cgroup__memory__memory_dot_limit_in_bytes=V1_NO_LIMIT)
    assert available_memory(tmp_path) == 8_000 * 1024


def test_this_machine_has_a_core_and_memory() -> None:
    """The real files of this machine can be read."""
    assert 1 <= usable_cores() <= (os.cpu_count() or 1)
    memory = available_memory()
    assert memory is None or memory > 0
