"""What a run measured, as it is written to a JSON file and read from it again."""

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

    Times are milliseconds; CPU is seconds of all its processes for each thousand tokens; memory is
    the resident megabytes of the server's processes right after the round.
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
    """All rounds of one side under one kind of load. `batch` is the number of tokens a request."""

    side: str
    database: str
    connections: int
    batch: int = 1
    rounds: list[Round] = field(default_factory=list)

    @property
    def name(self) -> str:
        """What answers, from which database, and how many tokens a request brings."""
        batch = f" by {self.batch}" if self.batch > 1 else ""
        return ", ".join(filter(None, (self.side, self.database))) + batch

    def median(self, name: str) -> float:
        """Return the median of one of a round's figures."""
        values: list[float] = [getattr(each, name) for each in self.rounds]
        return statistics.median(values)


@dataclass(frozen=True, slots=True)
class Reading:
    """A figure that stands alone, once a round."""

    name: str
    unit: str
    rounds: list[float]

    @property
    def median(self) -> float:
        """The median of the rounds."""
        return statistics.median(self.rounds)


@dataclass(frozen=True, slots=True)
class Report:
    """A whole run; it is valid without `faults`: wrong answers, missing rows, parts that broke."""

    machine: dict[str, str]
    options: dict[str, Any]
    series: list[Series] = field(default_factory=list)
    readings: list[Reading] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def find(
        self, side: str, database: str, *, connections: int | None = None, batch: int = 1
    ) -> Series | None:
        """Return the measured series of this kind of load, if there is one."""
        for each in self.series:
            fits = (each.side, each.database, each.batch) == (side, database, batch)
            if fits and connections in {None, each.connections} and each.rounds:
                return each
        return None

    def reading(self, name: str) -> float | None:
        """Return the median of a reading, if it was taken."""
        return next((each.median for each in self.readings if each.name == name), None)

    def read(self, name: str, unit: str, value: float) -> None:
        """Add a round to a reading."""
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
        """Read what `as_json` wrote."""
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
