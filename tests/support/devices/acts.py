"""Acts on one device, as an operator does them, for tests that need a device in some state."""

from datetime import timedelta

from birthmark_sma.authority.devices import re_enrolments, states
from birthmark_sma.authority.devices.revocation import change_device
from birthmark_sma.storage.engine import Database
from tests.support.devices.actors import ACTOR


def suspend_device(database: Database, name: str) -> str:
    """Suspend a device, and return its registered serial."""
    return change_device(database, name, states.suspend(ACTOR))


def reinstate_device(database: Database, name: str) -> str:
    """End the suspension of a device, and return its registered serial."""
    return change_device(database, name, states.reinstate(ACTOR))


def revoke_device(database: Database, name: str, reason: str) -> str:
    """Revoke a device, and return its registered serial."""
    return change_device(database, name, states.revoke(ACTOR, reason))


def retire_device(database: Database, name: str) -> str:
    """Retire a device, and return its registered serial."""
    return change_device(database, name, states.retire(ACTOR))


def allow_re_enrolment(database: Database, name: str) -> None:
    """Let a device be provisioned once more within an hour."""
    re_enrolments.allow(database, name, timedelta(hours=1), ACTOR)
