"""A running server tends its audit trail, and its figures are those of the trail, come what may."""

import random
import signal
from datetime import UTC, datetime, timedelta
from pathlib import Path

from birthmark_sma.storage.partitions import list_partitions
from tests.end_to_end.conftest import FEW_TABLES, Start
from tests.support.authorities import execute
from tests.support.cameras.camera import VALIDATE, Camera, wire
from tests.support.counting import (
    assert_counters_are_those_of_the_trail,
    assert_the_chains_verify,
)
from tests.support.programs.commands import sma
from tests.support.programs.load import validate_all
from tests.support.programs.running import Running, new_serial, start, wait_until
from tests.support.programs.server import PASSPHRASE, server_environ

ROUNDS = 3
TOKENS_A_ROUND = 600


def test_a_server_makes_partitions_ahead(postgres_url: str, tmp_path: Path) -> None:
    """A week of them, though somebody took all away: what was written meanwhile has moved."""
    environ = server_environ(tmp_path / "data", postgres_url) | FEW_TABLES
    new_authority = sma("init", environ=environ)
    assert new_authority.returncode == 0, new_authority.stderr
    running = start(tmp_path / "data", postgres_url)
    running.server.close()
    with running.database() as database, database.read() as connection:
        days = [each.name for each in list_partitions(connection) if each.ends is not None]
    with running.database() as database:
        for name in days:
            execute(database, f"DROP TABLE {name}")
        execute(
            database,
            "INSERT INTO validation_history (encrypted_nuc_hash, table_id, key_index,"
            " validation_result, reason, validated_at)"
            " VALUES ('x', 1, 1, 'FAIL', 'not_opened', now())",
        )
    running = start(tmp_path / "data", postgres_url, SMA_AUDIT_RETENTION_DAYS="1")
    with running.server:
        unforeseen = "validation_history_unforeseen"
        wait_until(lambda: running.count(unforeseen) == 0, 20)
        with running.database() as database, database.read() as connection:
            found = list_partitions(connection)
        assert len(found) == 9
        assert running.count(f"validation_history_{datetime.now(UTC):%Y%m%d}") == 1
    assert PASSPHRASE not in running.server.said()


def test_a_server_drops_what_is_older_than_its_retention(start_server: Start) -> None:
    """By itself, and nothing else; on SQLite not before its clock has been right for an hour."""
    running = start_server()
    with running.client() as client:
        camera = Camera.provisioned(client, new_serial())
        for _ in range(4):
            client.post(VALIDATE, json=wire(camera.token()))
    running.server.close()
    old = datetime.now(UTC) - timedelta(days=3)
    with running.database() as database:
        execute(
            database,
            "UPDATE validation_history SET validated_at = :old WHERE id IN"
            " (SELECT id FROM validation_history ORDER BY id LIMIT 1)",
            old=old.isoformat(" ", "microseconds") if running.uses_sqlite else old,
        )
    running = start_server(SMA_AUDIT_RETENTION_DAYS="2")
    if running.uses_sqlite:
        pruned = sma(
            *("history", "prune", "--yes", "--older-than-days", "2"), environ=running.environ
        )
        assert pruned.returncode == 0, pruned.stderr
    wait_until(lambda: running.count("validation_history") == 3, 20)


def test_counters_survive_sigkill(start_server: Start) -> None:
    """Threat 30: killed in the middle of validations: every row is counted, and nothing else."""
    running = start_server()
    with running.client() as client:
        cameras = [Camera.provisioned(client, new_serial()) for _ in range(30)]
    chance = random.Random(3)
    for _ in range(ROUNDS):
        server = running.server
        deadline = chance.randint(200, 400)

        def kill_once(answered: int, deadline: int = deadline, running: Running = running) -> None:
            if answered == deadline:
                running.server.process.send_signal(signal.SIGKILL)

        tokens = [
            chance.choice(cameras).token(key_index=chance.choice([1, 2, 3, 123_456]))
            for _ in range(TOKENS_A_ROUND)
        ]
        validate_all(server.url, tokens, connections=12, note=kill_once)
        assert server.process.wait(30) == -signal.SIGKILL
        server.close()
        running = start_server()
    with running.database() as database:
        counted = assert_counters_are_those_of_the_trail(database, killed=True)
        assert_the_chains_verify(database)
    assert counted > ROUNDS * 200


def test_workers_count_together(start_server: Start) -> None:
    """Two processes on one database, the same devices at once: nothing is lost or counted twice."""
    running = start_server("--workers", "2")
    with running.client() as client:
        cameras = [Camera.provisioned(client, new_serial()) for _ in range(5)]
    tokens = [cameras[number % 5].token() for number in range(1_500)]
    answers = validate_all(running.server.url, tokens, connections=16)
    assert all(answer is not None and answer.status == 200 for answer in answers)
    with running.database() as database:
        assert assert_counters_are_those_of_the_trail(database) == len(tokens)
        assert_the_chains_verify(database)
    with running.client() as client:
        stats = client.get("/stats").json()
    assert stats["recent_validations_24h"] == {"PASS": len(tokens), "FAIL": 0}
    assert {top["count"] for top in stats["top_devices"]} == {300}
