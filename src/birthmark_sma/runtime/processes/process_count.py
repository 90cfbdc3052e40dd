"""Decide how many processes a server runs if the settings do not say it.

`sma serve` calls `decide`, and passes in what it has measured. PURE.
"""

from dataclasses import dataclass

from birthmark_sma.counts import counted

PROCESS_BYTES = 160 * 1024**2
"""The memory of a process under load: 110 to 130 MB were measured, and more with many callers."""
SUPERVISOR_BYTES = 130 * 1024**2
"""The memory of the process that starts the others, and that also has the authority open."""
PROCESS_CONNECTIONS = 15
"""The most connections that a process opens to PostgreSQL."""


@dataclass(frozen=True, slots=True)
class Resources:
    """The resources that a server may use: cores, bytes of memory, and connections to PostgreSQL.

    None means that the limit is not known.
    """

    cores: int
    memory: int | None
    connections: int | None


@dataclass(frozen=True, slots=True)
class ProcessCount:
    """A number of processes, and the reason for it as operators read it."""

    number: int
    reason: str

    def __str__(self) -> str:
        return f"{self.number} ({self.reason})"


def decide(resources: Resources) -> ProcessCount:
    """Return one process for each usable core, or fewer if memory or connections are scarce."""
    limits = [(resources.cores, f"{counted(resources.cores, 'usable core')}")]
    if resources.memory is not None:
        megabytes = resources.memory // 1024**2
        # One process needs no supervisor, so the first one always fits.
        number = max(1, (resources.memory - SUPERVISOR_BYTES) // PROCESS_BYTES)
        limits.append((number, f"{megabytes:,} MB of memory available"))
    if resources.connections is not None:
        number = max(1, resources.connections // PROCESS_CONNECTIONS)
        free = counted(max(0, resources.connections), "free connection")
        limits.append((number, f"{free} at the database, {PROCESS_CONNECTIONS} for each process"))
    # `min` returns the first of equals: the cores, if nothing else is scarcer.
    number, reason = min(limits, key=lambda limit: limit[0])
    if number < resources.cores:
        reason = f"{reason}; {counted(resources.cores, 'usable core')}"
    return ProcessCount(number, reason)
