"""The files in deploy/high-availability keep the rules that programs do not check themselves."""

import re
from typing import Any

import pytest
import yaml

from tests.high_availability import test_fail_over
from tests.high_availability.node import FILES
from tests.support.deployment.platforms import ROOT, read_environment_file

PAGE = (ROOT / "docs" / "set-up" / "high-availability.md").read_text(encoding="utf-8")
PATRONI: Any = yaml.safe_load((FILES / "patroni.yml").read_text(encoding="utf-8"))
HAPROXY = (FILES / "haproxy.cfg").read_text(encoding="utf-8")


def test_an_acknowledged_commit_is_on_both_nodes() -> None:
    """Settings of a file override those in etcd, so neither place may weaken it."""
    shared = PATRONI["bootstrap"]["dcs"]
    assert shared["synchronous_mode"] is True
    assert shared["synchronous_node_count"] == 1
    for place in (shared["postgresql"], PATRONI["postgresql"]):
        weak = {"synchronous_commit", "synchronous_standby_names", "fsync", "full_page_writes"}
        assert not weak & place["parameters"].keys()


def test_patroni_takes_the_times_as_they_are() -> None:
    """It would replace times that break its rules, and say so in its log alone."""
    shared = PATRONI["bootstrap"]["dcs"]
    assert shared["ttl"] >= 20
    assert shared["retry_timeout"] >= 3
    assert shared["loop_wait"] + 2 * shared["retry_timeout"] <= shared["ttl"]


def test_nobody_enters_without_a_password() -> None:
    for line in PATRONI["postgresql"]["pg_hba"]:
        assert line.split()[-1] == "scram-sha-256"
    environ = read_environment_file("deploy/high-availability/db1.env")
    passwords = {name: value for name, value in environ.items() if name.endswith("PASSWORD")}
    assert len(passwords) == 3
    assert not any(passwords.values())


def test_every_variable_of_haproxy_has_a_value() -> None:
    """HAProxy takes one that is missing for an empty text."""
    preset = dict(re.findall(r"presetenv (\w+) (\S+)", HAPROXY))
    assert set(re.findall(r'"\$\{(\w+)\}"', HAPROXY)) == preset.keys()


def test_etcd_is_three() -> None:
    """Its five lines name the host, and the cluster three of them."""
    environ = read_environment_file("deploy/high-availability/etcd1.env")
    members = dict(each.split("=", 1) for each in environ["ETCD_INITIAL_CLUSTER"].split(","))
    assert members.keys() == {"etcd1", "etcd2", "etcd3"}
    assert members[environ["ETCD_NAME"]] == environ["ETCD_INITIAL_ADVERTISE_PEER_URLS"]


def test_the_page_shows_every_file() -> None:
    shown = re.findall(
        r"^```\{literalinclude\} \.\./\.\./deploy/high-availability/(\S+)$", PAGE, re.M
    )
    assert sorted(shown) == sorted(file.name for file in FILES.iterdir())


@pytest.mark.parametrize(
    ("fault", "seconds"),
    [
        ("switchover", test_fail_over.SWITCHOVER_SECONDS),
        ("read-only in place, 4 s", test_fail_over.READ_ONLY_SECONDS),
        ("kill -9 of the primary", test_fail_over.KILLED_SECONDS),
        ("kill -9, through HAProxy", test_fail_over.KILLED_SECONDS),
        ("frozen primary", test_fail_over.FROZEN_SECONDS),
        ("cut network", test_fail_over.FROZEN_SECONDS),
        ("return of the old primary, and switchover to it", test_fail_over.SWITCHOVER_SECONDS),
        ("cancelled commits, then kill -9", test_fail_over.FROZEN_SECONDS),
    ],
)
def test_the_page_promises_what_the_scenarios_check(fault: str, seconds: float) -> None:
    """And what was measured keeps the promise."""
    found = re.search(
        rf"^\| {re.escape(fault)} \| (\d+) s \| ([\d.]+) s \| ([\d.]+) s \|$", PAGE, re.M
    )
    assert found is not None, f"the page has no row for {fault}"
    promised, median, worst = map(float, found.groups())
    assert promised == seconds
    assert median <= worst < promised
