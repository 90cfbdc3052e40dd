"""The camera families of a simulation: their share of the fleet and their busy hours. Pure.

The numbers are invented. They are chosen so that the families peak at different times: phones in
the evening, press cameras at noon, dash cameras in rush hours, trail cameras at night.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

HOURS = 24


@dataclass(frozen=True, slots=True)
class Family:
    """A camera family.

    `share` is its part of the fleet. `pictures` is the number of pictures that one camera takes, in
    proportion to other families. `hours` distributes them over the 24 hours of a day, in any unit.
    """

    name: str
    share: float
    pictures: float
    hours: tuple[float, ...]

    def activity(self, hour: int | None) -> float:
        """Return the activity of one camera in an hour of the day, or its average if None.

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
    """Return families with these names, or FAMILIES if there are no names.

    They get share, pictures and hours of FAMILIES in turn. Duplicate names are dropped.
    """
    if not names:
        return FAMILIES
    return tuple(
        replace(FAMILIES[n % len(FAMILIES)], name=name)
        for n, name in enumerate(dict.fromkeys(names))
    )
