"""What was found at one place, and how bad it is."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

_UNITS = ("kB", "MB", "GB", "TB")


class State(StrEnum):
    """From good to bad. NOTED is something to know, and no reason for anybody to get up."""

    WELL = "well"
    NOTED = "noted"
    WARNING = "warning"
    CRITICAL = "critical"


_SEVERITY = {state: severity for severity, state in enumerate(State)}


@dataclass(frozen=True, slots=True)
class Finding:
    """What was looked at, what was seen in one sentence, and what to do about it."""

    state: State
    name: str
    sentence: str
    remedy: str | None = None


def ok(name: str, sentence: str) -> Finding:
    """Nothing is to be done."""
    return Finding(State.WELL, name, sentence)


def info(name: str, sentence: str, remedy: str | None = None) -> Finding:
    """Something to know."""
    return Finding(State.NOTED, name, sentence, remedy)


def warning(name: str, sentence: str, remedy: str) -> Finding:
    """Something that will become worse, or does harm already without stopping the service."""
    return Finding(State.WARNING, name, sentence, remedy)


def critical(name: str, sentence: str, remedy: str) -> Finding:
    """The service does not work, or acknowledged data are in danger."""
    return Finding(State.CRITICAL, name, sentence, remedy)


def worst(findings: Sequence[Finding]) -> State:
    """Return the worst state of all; of none, that all is well."""
    return max((each.state for each in findings), key=_SEVERITY.__getitem__, default=State.WELL)


@dataclass(frozen=True, slots=True)
class Term:
    """How long before its end something becomes a warning, and when it becomes critical."""

    warning: timedelta
    critical: timedelta

    def judge(self, end: datetime, now: datetime) -> State:
        """Say how bad it is that this ends then."""
        left = end - now
        if left <= self.critical:
            return State.CRITICAL
        return State.WARNING if left <= self.warning else State.WELL


def size(number: float) -> str:
    """Write a number of bytes as people do: 1.2 GB."""
    for unit in _UNITS:
        number /= 1000
        if number < 999.95 or unit == _UNITS[-1]:
            break
    return f"{number:,.1f} {unit}"


def until(end: datetime, now: datetime) -> str:
    """Write how long something lasts yet, or how long ago it ended."""
    days = (end - now) / timedelta(days=1)
    if end <= now:
        return f"ended on {end:%Y-%m-%d}"
    return f"until {end:%Y-%m-%d}, {days:,.0f} days from now"
