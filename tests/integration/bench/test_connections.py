"""A tiny real round: a fleet, the real server, the generator of our own, the audit trail."""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from bench import connections, fleet, sites
from bench.parts.open_load import passed
from bench.processes import cpu_seconds
from bench.sites import Site
from birthmark_sma.pki.keys.ca_keys import CaKeyType
from birthmark_sma.web.api.validate import BATCH_PATH, PATH
from tests.support.databases.postgres import DURABLE_OPTIONS, Postgres

DEVICES = 40


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def filled(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    postgres_binaries: Path,
    full_derivation_cost_in_module: None,
) -> Iterator[tuple[Site, list[bytes]]]:
    """An authority with a fleet, and two tokens of each device."""
    folder = tmp_path_factory.mktemp("bench")
    if request.param == "sqlite":
        yield _fill(sites.create(folder, None, "tiny", key_type=CaKeyType.EC_P256))
        return
    with Postgres(DURABLE_OPTIONS, binaries=postgres_binaries) as postgres:
        yield _fill(sites.create(folder, postgres, "tiny", key_type=CaKeyType.EC_P256))


def _fill(site: Site) -> tuple[Site, list[bytes]]:
    with site.opened() as authority:
        cameras = fleet.fill(authority, DEVICES, keep=DEVICES)
        assert len({each.device_serial for each in cameras}) == DEVICES
        return site, fleet.bodies(authority, cameras, 2 * DEVICES)


def test_every_answer_is_right_and_recorded(filled: tuple[Site, list[bytes]]) -> None:
    """At a constant rate, as fast as it goes, and in batches."""
    site, bodies = filled
    moment = datetime.now(UTC).isoformat(" ", "microseconds")
    with site.serve() as server:
        before = cpu_seconds(server.process.pid)
        paced = connections.at_rate(
            server.url + PATH, bodies, rate=200, seconds=1, connections=8, check=passed
        )
        assert cpu_seconds(server.process.pid) > before
        quick = connections.closed(
            server.url + PATH, bodies, count=100, connections=4, check=passed
        )
        together = connections.closed(
            server.url + BATCH_PATH,
            fleet.batches(bodies, DEVICES),
            connections=1,
            check=lambda body: body.count(b"PASS") == DEVICES,
        )
    assert (paced.answers, quick.answers, together.answers) == (200, 100, 2)
    assert (paced.wrong, quick.wrong, together.wrong) == (0, 0, 0)
    assert 0.9 < paced.seconds < 3
    assert 0 < paced.p50_ms <= paced.p95_ms <= paced.p99_ms
    assert paced.generator_cpu < 0.5
    assert site.recorded_since(moment) == (200 + 100 + 2 * DEVICES, 0)


def test_wrong_answers_are_counted(filled: tuple[Site, list[bytes]]) -> None:
    """A verdict of FAIL and a refusal alike."""
    site, bodies = filled
    moment = datetime.now(UTC).isoformat(" ", "microseconds")
    altered = bodies[0].replace(b'"nonce": "', b'"nonce": "0')[:-3] + b'"}'
    with site.serve() as server:
        load = connections.closed(
            server.url + PATH, [bodies[0], altered, b"{}"], connections=1, check=passed
        )
    assert (load.answers, load.wrong) == (3, 2)
    assert site.recorded_since(moment) == (2, 1)
