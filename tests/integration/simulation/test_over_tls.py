"""Against `sma serve --tls-self`: with its CA and its root's fingerprint, and without."""

import json
from collections.abc import Iterator

import pytest

from tests.support.programs.commands import sma
from tests.support.programs.running import Running, start

FLEET = ("fleet", "--cameras", "3", "--duration", "1", "--rate", "20")
CAMERA = ("camera", "--pictures", "2", "--interval", "0")
AGGREGATOR = ("aggregator", "--port", "0", "--duration", "0")


@pytest.fixture(scope="module")
def encrypted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """An authority on a laptop, which speaks TLS by a CA of its own."""
    folder = tmp_path_factory.mktemp("encrypted")
    running = start(folder / "data", "sqlite:", "--tls-self", SMA_TABLES="10")
    with running.server:
        yield running


def simulate(running: Running, command: tuple[str, ...], *more: str) -> tuple[int, str, str]:
    """Play one end or both, and return exit code, stdout and stderr."""
    name, *arguments = command
    done = sma(
        "simulate", name, running.server.url, *arguments, *more, "--json", environ=running.environ
    )
    return done.returncode, done.stdout, done.stderr


def trusting(running: Running) -> tuple[str, ...]:
    """What the server's start says that those who connect need."""
    facts = running.server.facts
    return (
        *("--ca-file", facts["tls_ca_file"]),
        *("--root-fingerprint", facts["root_sha256_fingerprint"]),
    )


@pytest.mark.parametrize("command", [FLEET, CAMERA], ids=lambda each: each[0])
def test_cameras_and_servers_that_trust_it(encrypted: Running, command: tuple[str, ...]) -> None:
    """Provisioning and validation both go over TLS, to the root that is pinned."""
    assert encrypted.server.url.startswith("https://")
    code, said, told = simulate(encrypted, command, *trusting(encrypted))
    assert code == 0, told + said
    report = json.loads(said)
    assert report["all_right"]
    assert report["bundles"]["right"] > 0


def test_an_aggregation_server_that_trusts_it(encrypted: Running) -> None:
    code, said, told = simulate(encrypted, AGGREGATOR, *trusting(encrypted))
    assert (code, told) == (0, "")
    assert json.loads(said)["url"].startswith("http://127.0.0.1:")


@pytest.mark.parametrize("command", [FLEET, CAMERA, AGGREGATOR], ids=lambda each: each[0])
def test_without_its_ca_there_is_a_sentence_at_once(
    encrypted: Running, command: tuple[str, ...]
) -> None:
    """Waiting would make no stranger an authority: nobody waits, and nothing is sent."""
    before = encrypted.count("registered_devices")
    code, _, told = simulate(encrypted, command)
    assert code == 3
    assert "--ca-file" in told
    assert "Nothing is lost" not in told
    assert encrypted.count("registered_devices") == before


def test_another_root_than_the_pinned_one(encrypted: Running) -> None:
    ca_file = ("--ca-file", encrypted.server.facts["tls_ca_file"])
    code, _, told = simulate(encrypted, AGGREGATOR, *ca_file, "--root-fingerprint", "00" * 32)
    assert code == 3
    assert "does not have the pinned fingerprint" in told
