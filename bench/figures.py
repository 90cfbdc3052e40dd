"""The figures of a run, and their JSON form in bench/results/last.json.

All parts write into one `Report`. Tables, plot and document read it.
"""

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

CONVENTIONAL = "conventional"
SERVER = "sma serve"
NOOP = "no-op handler"
PLAIN_NOOP = "no-op, plain uvicorn"

POSTGRESQL = "PostgreSQL"
SQLITE = "SQLite"
NO_DATABASE = ""


@dataclass(frozen=True, slots=True)
class Round:
    """One round of load on one side.

    Latencies are milliseconds. CPU is seconds of all its processes for each thousand tokens. Memory
    is the resident memory of the server's processes after the round, in millions of bytes.
    """

    tokens_per_second: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    server_cpu: float
    database_cpu: float
    resident_mb: float


@dataclass(frozen=True, slots=True)
class Series:
    """All rounds of one side under one kind of load. `batch` is the tokens per request."""

    side: str
    database: str
    connections: int
    batch: int = 1
    rounds: list[Round] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The side, its database, and the number of tokens per request if it is above 1."""
        batch = f" by {self.batch}" if self.batch > 1 else ""
        return ", ".join(filter(None, (self.side, self.database))) + batch

    def median(self, name: str) -> float:
        """Return the median over the rounds of the figure `name`, a field of Round."""
        values: list[float] = [getattr(each, name) for each in self.rounds]
        return statistics.median(values)


@dataclass(frozen=True, slots=True)
class Reading:
    """A single figure, measured once in each round."""

    name: str
    unit: str
    rounds: list[float]

    @property
    def median(self) -> float:
        """The median of the rounds."""
        return statistics.median(self.rounds)


@dataclass(frozen=True, slots=True)
class Report:
    """A whole run. It is valid only if `faults` is empty.

    Faults are wrong responses, missing audit rows and parts that raised an error.
    """

    machine: dict[str, str]
    options: dict[str, Any]
    series: list[Series] = field(default_factory=list)
    readings: list[Reading] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def find(
        self, side: str, database: str, *, connections: int | None = None, batch: int = 1
    ) -> Series | None:
        """Return the first series with rounds of this kind of load, or None."""
        for each in self.series:
            fits = (each.side, each.database, each.batch) == (side, database, batch)
            if fits and connections in {None, each.connections} and each.rounds:
                return each
        return None

    def reading(self, name: str) -> float | None:
        """Return the median of a reading, or None if it was not measured."""
        return next((each.median for each in self.readings if each.name == name), None)

    def read(self, name: str, unit: str, value: float) -> None:
        """Add the value of one round to the reading `name`."""
        for each in self.readings:
            if each.name == name:
                each.rounds.append(value)
                return
        self.readings.append(Reading(name, unit, [value]))

    def as_json(self) -> str:
        """Return the whole run as JSON."""
        return json.dumps(asdict(self), indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Report":
        """Return the run that `as_json` wrote."""
        value = json.loads(text)
        series = [
            Series(**{**each, "rounds": [Round(**one) for one in each["rounds"]]})
            for each in value["series"]
        ]
        readings = [Reading(**each) for each in value["readings"]]
        return cls(value["machine"], value["options"], series, readings, value["faults"])


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the nearest-rank percentile: the smallest value that `percent` % do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]
