"""The result of a check: a state from good to critical, a sentence, and a remedy.

All checks of `sma doctor` and `sma secrets check` create findings with `ok`, `info`, `warning` and
`critical`. A finding without a name gets the name of its check from `runner`.
"""

import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

_UNITS = ("kB", "MB", "GB", "TB")
# Free space in bytes and as a share of the disk. A warning needs both, critical needs one of them.
_SHORT, _SCARCE = 5_000_000_000, 500_000_000
_SHORT_SHARE, _SCARCE_SHARE = 0.10, 0.02


class State(StrEnum):
    """The states, from good to bad. NOTED is information that needs no action."""

    WELL = "well"
    NOTED = "noted"
    WARNING = "warning"
    CRITICAL = "critical"


_SEVERITY = {state: severity for severity, state in enumerate(State)}


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of a check: its name, one sentence, and what to do about it."""

    state: State
    name: str
    sentence: str
    remedy: str | None = None

    @property
    def is_bad(self) -> bool:
        """True if it needs an action."""
        return self.state in {State.WARNING, State.CRITICAL}


def ok(sentence: str, name: str = "") -> Finding:
    """Return a finding that needs no action."""
    return Finding(State.WELL, name, sentence)


def info(sentence: str, remedy: str | None = None, name: str = "") -> Finding:
    """Return a finding with information only."""
    return Finding(State.NOTED, name, sentence, remedy)


def warning(sentence: str, remedy: str, name: str = "") -> Finding:
    """Return a finding that will become worse, or does harm without stopping the service."""
    return Finding(State.WARNING, name, sentence, remedy)


def critical(sentence: str, remedy: str, name: str = "") -> Finding:
    """Return a finding for a service that does not work, or for committed data in danger."""
    return Finding(State.CRITICAL, name, sentence, remedy)


def worst(findings: Iterable[Finding]) -> State:
    """Return the worst state of the findings, WELL if there are none."""
    return max((each.state for each in findings), key=_SEVERITY.__getitem__, default=State.WELL)


def size(number: float) -> str:
    """Return a number of bytes as text with a decimal unit, such as 1.2 GB."""
    for unit in _UNITS:
        number /= 1000
        if number < 999.95 or unit == _UNITS[-1]:
            break
    return f"{number:,.1f} {unit}"


def check_disk(directory: Path) -> Finding:
    """Check the free space of the disk that a directory is on."""
    try:
        usage = shutil.disk_usage(directory)
    except OSError as error:
        why = f"The free space under {directory} is unknown: {error.strerror}"
        return warning(why, "Look at this directory")
    share = usage.free / usage.total if usage.total else 0.0
    sentence = f"{size(usage.free)} of {size(usage.total)} are free under {directory}"
    remedy = "Free some space: when the disk is full, callers get 503"
    if usage.free < _SCARCE or share < _SCARCE_SHARE:
        return critical(sentence, remedy)
    if usage.free < _SHORT and share < _SHORT_SHARE:
        return warning(sentence, remedy)
    return ok(sentence)
