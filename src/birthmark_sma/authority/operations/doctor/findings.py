"""The result of a check: a state from good to critical, a sentence, and a remedy.

All checks of `sma doctor` create findings with `ok`, `info`, `warning` and `critical`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

_UNITS = ("kB", "MB", "GB", "TB")


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


def ok(name: str, sentence: str) -> Finding:
    """Return a finding that needs no action."""
    return Finding(State.WELL, name, sentence)


def info(name: str, sentence: str, remedy: str | None = None) -> Finding:
    """Return a finding with information only."""
    return Finding(State.NOTED, name, sentence, remedy)


def warning(name: str, sentence: str, remedy: str) -> Finding:
    """Return a finding that will become worse, or does harm without stopping the service."""
    return Finding(State.WARNING, name, sentence, remedy)


def critical(name: str, sentence: str, remedy: str) -> Finding:
    """Return a finding for a service that does not work, or for committed data in danger."""
    return Finding(State.CRITICAL, name, sentence, remedy)


def worst(findings: Sequence[Finding]) -> State:
    """Return the worst state of the findings, WELL if there are none."""
    return max((each.state for each in findings), key=_SEVERITY.__getitem__, default=State.WELL)


@dataclass(frozen=True, slots=True)
class Term:
    """The time before an expiry from which on it is a warning, and critical."""

    warning: timedelta
    critical: timedelta

    def judge(self, end: datetime, now: datetime) -> State:
        """Return the state, at `now`, of something that expires at `end`."""
        left = end - now
        if left <= self.critical:
            return State.CRITICAL
        return State.WARNING if left <= self.warning else State.WELL


def size(number: float) -> str:
    """Return a number of bytes as text with a decimal unit, such as 1.2 GB."""
    for unit in _UNITS:
        number /= 1000
        if number < 999.95 or unit == _UNITS[-1]:
            break
    return f"{number:,.1f} {unit}"


def until(end: datetime, now: datetime) -> str:
    """Return as text until when and how many days something lasts, or when it ended."""
    days = (end - now) / timedelta(days=1)
    if end <= now:
        return f"ended on {end:%Y-%m-%d}"
    return f"until {end:%Y-%m-%d}, {days:,.0f} days from now"
