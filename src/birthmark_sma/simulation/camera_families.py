"""Families of cameras: how many of a fleet they are, and at which hours they take pictures. Pure.

The figures are invented, and chosen to differ: peaks by day, at noon, in traffic, and at night.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

HOURS = 24


@dataclass(frozen=True, slots=True)
class Family:
    """`share` is of the fleet's cameras; `pictures` how many one takes beside those of others;
    `hours` how much of that in each hour of the day, in any unit."""

    name: str
    share: float
    pictures: float
    hours: tuple[float, ...]

    def activity(self, hour: int | None) -> float:
        """How much one camera does in an hour of the day, or on average (None).

        The average over the day is `pictures`.
        """
        if hour is None:
            return self.pictures
        return self.pictures * self.hours[hour] * HOURS / sum(self.hours)


FAMILIES: tuple[Family, ...] = (
    Family(
        "Simulated Phone",
        0.55,
        1.0,
        (1, 0.5, 0.3, 0.2, 0.2, 0.5, 1.5, 3, 4, 4, 5, 6, 7, 6, 5, 5, 6, 7, 8, 8, 7, 6, 4, 2),
    ),
    Family(
        "Simulated Press Camera",
        0.15,
        3.0,
        (1, 1, 1, 1, 1, 1, 2, 4, 7, 9, 10, 10, 9, 9, 10, 10, 9, 8, 7, 7, 6, 4, 2, 1),
    ),
    Family(
        "Simulated Dash Camera",
        0.2,
        1.5,
        (1, 1, 1, 1, 1, 3, 7, 10, 9, 5, 3, 3, 4, 4, 4, 5, 8, 10, 9, 6, 4, 3, 2, 1),
    ),
    Family(
        "Simulated Trail Camera",
        0.1,
        0.5,
        (6, 6, 6, 6, 7, 9, 8, 4, 2, 1, 1, 1, 1, 1, 1, 2, 3, 5, 8, 9, 8, 7, 6, 6),
    ),
)


def families_by_name(names: Sequence[str]) -> tuple[Family, ...]:
    """Return families of these names, with the habits of those above in turn; none means those."""
    if not names:
        return FAMILIES
    return tuple(
        replace(FAMILIES[n % len(FAMILIES)], name=name)
        for n, name in enumerate(dict.fromkeys(names))
    )
