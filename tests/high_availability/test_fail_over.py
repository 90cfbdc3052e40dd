"""Faults of a cluster of PostgreSQL, under two servers with load: `make test-ha`.

Nothing that was acknowledged is lost, doubled or wrong, and service is back in time. The numbers of
seconds are promises of docs/set-up/high-availability.md.
"""

import os
import signal
import time
from collections.abc import Callable

import pytest

from tests.high_availability.cluster import Cluster
from tests.high_availability.conftest import Bed
from tests.high_availability.report import Outcome
from tests.support.databases.standby import cancel_waiting_commits, waiting_commits
from tests.support.programs.running import query, wait_until

pytestmark = pytest.mark.high_availability

SWITCHOVER_SECONDS = 5.0
KILLED_SECONDS = 25.0
FROZEN_SECONDS = 30.0
READ_ONLY_SECONDS = 10.0
_FAIL_OVER_SECONDS = 60.0
_READ_ONLY_FOR_SECONDS = 4.0
_WHOLE_SECONDS = 120.0
_WAITING_SECONDS = 20.0
_CANCELLED_TIMES = 5


def assert_good(outcome: Outcome, seconds: float) -> None:
    """Assert that nothing was lost, doubled or wrong, and that service was back in time."""
    assert outcome.is_clean, outcome
    assert outcome.acknowledged > 100, outcome
    assert outcome.seconds < seconds, outcome


def wait_for_another_leader(cluster: Cluster, former: str) -> None:
    def is_led() -> bool:
        leader = cluster.find_leader()
        return leader is not None and leader.name != former

    wait_until(is_led, _FAIL_OVER_SECONDS)


def test_switchover(bed: Bed, round_number: int) -> None:
    """An operator makes the standby the primary."""
    with bed.scenario("switchover") as (_, outcome):
        bed.cluster.switch_over()
    assert_good(outcome(), SWITCHOVER_SECONDS)


def test_read_only_in_place(bed: Bed, round_number: int) -> None:
    """The primary becomes read-only for 4 seconds, which Patroni does not notice."""
    primary = bed.cluster.leader()
    with bed.scenario("read-only in place, 4 s") as (_, outcome):
        primary.execute(
            "ALTER SYSTEM SET default_transaction_read_only = on", "SELECT pg_reload_conf()"
        )
        time.sleep(_READ_ONLY_FOR_SECONDS)
        primary.execute(
            "SET default_transaction_read_only = off",
            "ALTER SYSTEM RESET default_transaction_read_only",
            "SELECT pg_reload_conf()",
        )
    assert_good(outcome(), READ_ONLY_SECONDS)


def test_kill_of_the_primary(bed: Bed, round_number: int) -> None:
    """Its machine loses its power. It is started again only after the fail-over."""
    assert_good(_kill(bed, "kill -9 of the primary"), KILLED_SECONDS)


def test_kill_of_the_primary_behind_haproxy(bed_behind_haproxy: Bed, round_number: int) -> None:
    """The same, with one address of the database that follows the primary."""
    assert_good(_kill(bed_behind_haproxy, "kill -9, through HAProxy"), KILLED_SECONDS)


def _kill(bed: Bed, name: str) -> Outcome:
    primary = bed.cluster.leader()
    with bed.scenario(name) as (load, outcome):
        primary.kill()
        wait_for_another_leader(bed.cluster, primary.name)
        load.wait_for_service(_FAIL_OVER_SECONDS)
        primary.start()
        bed.cluster.wait_until_whole(_WHOLE_SECONDS)
    return outcome()


def test_frozen_primary(bed: Bed, round_number: int) -> None:
    """Its machine hangs, and goes on after the fail-over as if it were the primary still."""
    primary = bed.cluster.leader()
    outcome = _unreachable(bed, "frozen primary", primary.freeze, primary.thaw)
    assert_good(outcome, FROZEN_SECONDS)


def test_cut_network(bed: Bed, round_number: int) -> None:
    """The primary is cut off from servers, standby and etcd. What was on its way arrives later."""
    primary = bed.cluster.leader()
    outcome = _unreachable(bed, "cut network", primary.cut, primary.mend)
    assert_good(outcome, FROZEN_SECONDS)


def _unreachable(
    bed: Bed, name: str, begin: Callable[[], None], end: Callable[[], None]
) -> Outcome:
    former = bed.cluster.leader().name
    try:
        with bed.scenario(name) as (load, outcome):
            begin()
            wait_for_another_leader(bed.cluster, former)
            load.wait_for_service(_FAIL_OVER_SECONDS)
            end()
            bed.cluster.wait_until_whole(_WHOLE_SECONDS)
    finally:
        end()
    return outcome()


def test_return_of_the_old_primary(bed: Bed, round_number: int) -> None:
    """It rejoins as a standby, and has every row when it is made the primary again."""
    primary = bed.cluster.leader()
    primary.kill()
    wait_for_another_leader(bed.cluster, primary.name)
    with bed.scenario("return of the old primary, and switchover to it") as (_, outcome):
        primary.start()
        bed.cluster.wait_until_whole(_WHOLE_SECONDS)
        bed.cluster.switch_over()
    assert bed.cluster.leader() is primary
    assert_good(outcome(), SWITCHOVER_SECONDS)


def test_commits_that_only_the_primary_has(bed: Bed, round_number: int) -> None:
    """Replication stands still, somebody cancels the commits that wait for it, the primary dies.

    PostgreSQL answers such a commit with COMMIT and a warning, and the standby does not have it.
    """
    primary = bed.cluster.leader()
    with bed.scenario("cancelled commits, then kill -9") as (load, outcome):
        [(sender,)] = query(primary.url(), "SELECT pid FROM pg_stat_replication")
        os.kill(sender, signal.SIGSTOP)
        for _ in range(_CANCELLED_TIMES):
            wait_until(lambda: bool(waiting_commits(primary.url())), _WAITING_SECONDS)
            cancel_waiting_commits(primary.url())
            time.sleep(0.2)  # so that clients get the verdicts
        primary.kill()
        wait_for_another_leader(bed.cluster, primary.name)
        load.wait_for_service(_FAIL_OVER_SECONDS)
        primary.start()
        bed.cluster.wait_until_whole(_WHOLE_SECONDS)
    assert_good(outcome(), FROZEN_SECONDS)
