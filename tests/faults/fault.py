"""A fault: its name, the bed that it needs, and how it is played and undone."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

from tests.faults.beds import Bed, BedKind

QUICK_SECONDS = 4.0
"""For faults that a write meets at once."""
HANGING_SECONDS = 9.0
"""For faults that let writes hang: readiness reacts after 5 seconds."""


@dataclass(frozen=True)
class Fault:
    """One fault. `play` begins it, and ends it at the end of its block."""

    name: str
    """As the table prints it. Unique."""
    play: Callable[[Bed], AbstractContextManager[object]]
    seconds: float = QUICK_SECONDS
    """For how long the block lasts."""
    bed: BedKind = BedKind.POSTGRESQL
    ends_server: bool = False
    """True if the server itself does not run for a time, so that no probe can be answered."""


@dataclass(frozen=True)
class Result:
    """What came of a fault. All seconds are counted from its start, or else from its end."""

    name: str
    bed: str
    clients: str
    """The answers to camera tokens, from the start of the fault until service was back."""
    gap: float
    """The longest time in which one kind of client had no verdict, in seconds."""
    unready: float | None
    """Seconds until `/health/ready` said something else than 200. None: it stayed 200."""
    ready: float | None
    """Seconds from the end of the fault until `/health/ready` said 200 again."""
    live: str
    """The answers of `/health/live`, and the slowest."""
    back: float
    """Seconds from the end of the fault until each kind of client had a verdict."""
    acknowledged: int
    lost: int
    doubled: int
    wrong: int
    complaints: tuple[str, ...] = ()
    """Why this run fails, in sentences. Empty if all is well."""

    @classmethod
    def broken(cls, fault: Fault) -> "Result":
        """Return the result of a fault after which service did not come back."""
        nothing = "service did not come back"
        return cls(
            name=fault.name,
            bed=fault.bed.value,
            clients=nothing,
            gap=0.0,
            unready=None,
            ready=None,
            live="",
            back=0.0,
            acknowledged=0,
            lost=0,
            doubled=0,
            wrong=0,
            complaints=(nothing,),
        )
