"""How many processes a server runs, from what it may use."""

import pytest

from birthmark_sma.runtime.processes.process_count import PROCESS_BYTES, Resources, decide

MB = 1024**2
PLENTY = 64_000 * MB


@pytest.mark.parametrize(
    ("cores", "memory", "connections", "number", "reason"),
    [
        (2, PLENTY, 97, 2, "2 usable cores"),
        (1, PLENTY, 97, 1, "1 usable core"),
        (4, None, None, 4, "4 usable cores"),
        # A small plan of a hosting platform: eight cores are seen, and 512 MB are there.
        (8, 512 * MB, 97, 2, "512 MB of memory available; 8 usable cores"),
        (8, 100 * MB, 97, 1, "100 MB of memory available; 8 usable cores"),
        (2, 512 * MB, 97, 2, "2 usable cores"),
        # A small plan of a database: 20 connections.
        (
            *(8, PLENTY, 17, 1),
            "17 free connections at the database, 15 for each process; 8 usable cores",
        ),
        (
            *(64, PLENTY, 97, 6),
            "97 free connections at the database, 15 for each process; 64 usable cores",
        ),
        # PostgreSQL has none left now: the server says so itself when it needs one.
        (
            *(2, PLENTY, -3, 1),
            "0 free connections at the database, 15 for each process; 2 usable cores",
        ),
    ],
)
def test_the_scarcest_resource_decides(
    cores: int, memory: int | None, connections: int | None, number: int, reason: str
) -> None:
    """One process for each core, if there is memory and a connection pool for each."""
    decided = decide(Resources(cores, memory, connections))
    assert (decided.number, decided.reason) == (number, reason)
    assert str(decided) == f"{number} ({reason})"


def test_memory_is_needed_for_the_supervisor_too() -> None:
    """Memory for two processes alone is not enough for two: the one that starts them needs some."""
    assert decide(Resources(2, 2 * PROCESS_BYTES, None)).number == 1
