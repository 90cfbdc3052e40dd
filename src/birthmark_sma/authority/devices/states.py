"""The rules for changes of a device's status. PURE.

`devices.revocation` asks `judge` for each device of an act, and writes what changes. Every act has
a reason of RFC 5280, section 5.3.1, which is also on the revocation list. No rule may make a
revocation weaker: a device that was revoked for a compromised key stays so.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum, auto

from birthmark_sma.authority.acts.actor import ActKind, Actor
from birthmark_sma.errors import DeviceStatusError
from birthmark_sma.pki.crl import HOLD, OLDEST_INVALIDITY, REASONS
from birthmark_sma.protocol.verdict import DeviceStatus

KEY_COMPROMISE = "key_compromise"
CESSATION = "cessation_of_operation"


class Act(StrEnum):
    """An act on devices, by an operator or by a program on its own."""

    SUSPEND = "suspend"
    REINSTATE = "reinstate"
    REVOKE = "revoke"
    RETIRE = "retire"

    @property
    def status(self) -> DeviceStatus:
        """Return the status of a device after this act."""
        return _STATUS[self]

    @property
    def kind(self) -> ActKind:
        """Return the kind of this act in the trail of acts."""
        return ActKind(f"device.{self.value}")

    @property
    def is_final(self) -> bool:
        """Return True if no other act makes the device active again."""
        return self in {Act.REVOKE, Act.RETIRE}


_STATUS = {
    Act.SUSPEND: DeviceStatus.SUSPENDED,
    Act.REINSTATE: DeviceStatus.ACTIVE,
    Act.REVOKE: DeviceStatus.REVOKED,
    Act.RETIRE: DeviceStatus.RETIRED,
}
_FROM: Mapping[Act, frozenset[DeviceStatus]] = {
    Act.SUSPEND: frozenset({DeviceStatus.ACTIVE}),
    Act.REINSTATE: frozenset({DeviceStatus.SUSPENDED}),
    # A retired device too: its key may leak later.
    Act.REVOKE: frozenset({DeviceStatus.ACTIVE, DeviceStatus.SUSPENDED, DeviceStatus.RETIRED}),
    Act.RETIRE: frozenset({DeviceStatus.ACTIVE, DeviceStatus.SUSPENDED}),
}
_GENTLE = frozenset({"superseded", CESSATION})
"""The reasons that say that nobody else has the key."""


@dataclass(frozen=True, slots=True)
class StatusChange:
    """An act, why it is done, and by whom.

    `reason` is a key of `pki.crl.REASONS`, or HOLD for a suspension; None for a reinstatement.
    `invalid_since` is the time since when the key may be in other hands; None if unknown.
    """

    act: Act
    reason: str | None
    actor: Actor
    invalid_since: datetime | None = None

    def check(self, now: datetime) -> None:
        """Raise DeviceStatusError if the reason or the time does not fit the act."""
        if self.act is Act.REVOKE and self.reason not in REASONS:
            raise DeviceStatusError(
                f"{self.reason} is not a revocation reason. Give one of: {', '.join(REASONS)}"
            )
        if self.invalid_since is None:
            return
        if self.reason != KEY_COMPROMISE:
            raise DeviceStatusError(
                "Only a key can be compromised since a time: give the reason key_compromise."
            )
        if not OLDEST_INVALIDITY <= self.invalid_since <= now:
            raise DeviceStatusError(
                "The key cannot be compromised since a time in the future, or before 1970."
            )


def suspend(actor: Actor) -> StatusChange:
    """Return the change that suspends devices: their certificates are on hold."""
    return StatusChange(Act.SUSPEND, HOLD, actor)


def reinstate(actor: Actor) -> StatusChange:
    """Return the change that ends suspensions."""
    return StatusChange(Act.REINSTATE, None, actor)


def revoke(actor: Actor, reason: str, invalid_since: datetime | None = None) -> StatusChange:
    """Return the change that revokes devices for ever."""
    return StatusChange(Act.REVOKE, reason, actor, invalid_since)


def retire(actor: Actor) -> StatusChange:
    """Return the change that retires devices: they are out of use, and nobody has their keys."""
    return StatusChange(Act.RETIRE, CESSATION, actor)


def list_acts(status: DeviceStatus) -> list[Act]:
    """Return the acts that can change a device with this status.

    A revoked device can be revoked again, for a stronger reason.
    """
    return [act for act in Act if status in _FROM[act] or act is Act.REVOKE]


class Effect(StrEnum):
    """The effect of an act on one device."""

    CHANGED = auto()
    UNCHANGED = auto()
    """The device has this status already."""
    REFUSED = auto()
    """The device's status does not allow the act."""


def judge(
    change: StatusChange,
    status: DeviceStatus,
    reason: str | None,
    invalid_since: datetime | None,
) -> Effect:
    """Return what a change does to a device with this status.

    `reason` and `invalid_since` are those of its entry on the revocation list. The reason is None
    if the device is not listed.
    """
    if status in _FROM[change.act]:
        return Effect.CHANGED
    if status is not change.act.status:
        return Effect.REFUSED
    if reason is None and status is not DeviceStatus.ACTIVE:
        return Effect.CHANGED  # an operator's own SQL changed the status, and did not list it
    if change.act is not Act.REVOKE:
        return Effect.UNCHANGED
    # Revoked already. A stronger reason counts, and so does another time of the compromise.
    old, new = (reason, invalid_since), (change.reason, change.invalid_since)
    if _strength(change.reason) > _strength(reason):
        return Effect.CHANGED
    is_new_time = change.reason == reason == KEY_COMPROMISE and old != new
    return Effect.CHANGED if is_new_time else Effect.UNCHANGED


def weaker_than(reason: str) -> tuple[str, ...]:
    """Return the reasons on the revocation list that `reason` replaces.

    A hold is for now only, so every final reason replaces it. The time of a compromise may be
    corrected.
    """
    if reason == HOLD:
        return ()
    weaker = tuple(each for each in REASONS if _strength(each) < _strength(reason))
    return (HOLD, *weaker, *((KEY_COMPROMISE,) if reason == KEY_COMPROMISE else ()))


def _strength(reason: str | None) -> int:
    """Return how much an aggregation server rejects for a reason (`client.revocation`)."""
    if reason == KEY_COMPROMISE:
        return 2
    return 0 if reason in _GENTLE else 1
