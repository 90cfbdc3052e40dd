"""The options of a run: the parts to measure, and how much."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from tests.support.databases.postgres import DURABLE_OPTIONS

POSTGRES_OPTIONS: Mapping[str, str] = {
    **DURABLE_OPTIONS,
    "shared_buffers": "1GB",
    "max_wal_size": "4GB",
}
"""Durable settings, with more memory than PostgreSQL's defaults: docs/operate/capacity.md."""

PARTS = (
    "validate",
    "sqlite",
    "batch",
    "processes",
    "cost",
    "replay",
    "open-load",
    "provision",
    "bulk",
    "start",
    "scale",
    "pages",
    "memory",
)


@dataclass(frozen=True, slots=True)
class Options:
    """The parts to measure and their sizes. `seconds` is the length of one measurement."""

    parts: tuple[str, ...] = PARTS
    small: bool = False
    rounds: int = 3
    seconds: float = 5.0
    devices: int = 100_000
    tokens: int = 150_000
    connections: tuple[int, ...] = (1, 32, 128)
    batch_connections: int = 4
    ledger_rows: int = 2_000_000
    open_load_rate: float = 2_000.0
    bulk_devices: int = 100_000
    memory_validations: int = 1_000_000
    scale_devices: int = 1_000_000
    scale_rows: int = 10_000_000
    pages_on_sqlite: bool = True

    def quick(self) -> "Options":
        """Return these options with small numbers, to test the benchmark itself."""
        return replace(
            self,
            small=True,
            rounds=1,
            seconds=1.0,
            devices=2_000,
            tokens=2_000,
            ledger_rows=20_000,
            bulk_devices=500,
            memory_validations=20_000,
            scale_devices=5_000,
            scale_rows=50_000,
        )
