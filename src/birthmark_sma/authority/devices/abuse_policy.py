"""Judge if a device makes far more pictures than usual. PURE: no clock, no database, no effects.

Called by `background.abuse_detection`. An attacker who has extracted a device's keys can make
pictures in bulk, which stands out against the device's earlier days. Only pictures count that an
authenticated caller submitted and that got PASS. So nobody without an access key can make a device
look abusive, or hide one that is.
"""

import math
from dataclasses import dataclass
from datetime import date, timedelta
from fractions import Fraction
from typing import NamedTuple

DAYS_COMPARED = 28
"""Four whole weeks, so that each day of the week counts the same."""


class Activity(NamedTuple):
    """A device's number of pictures on one day, and its activity before that day.

    `earlier` is the number of pictures in the `DAYS_COMPARED` days before. `days` is the number of
    those days on which the device was active.
    """

    pictures: int
    earlier: int = 0
    days: int = 0


class AbuseEvidence(NamedTuple):
    """The counts behind a flag: the device made more `pictures` on a day than `threshold`.

    `usual` is the mean number of pictures a day, over `days_compared` active days.
    """

    pictures: int
    usual: float
    days_compared: int
    threshold: int


@dataclass(frozen=True, slots=True)
class AbusePolicy:
    """Flags more than `least` pictures a day that are also more than `factor` times the usual."""

    factor: float
    least: int

    def judge(self, activity: Activity) -> AbuseEvidence | None:
        """Return the counts if the device is far above its usual rate, else None.

        The threshold is the larger of `least` and `factor` times the mean, rounded down. For a
        device without active days it is `least`.
        """
        pictures, earlier, days = activity
        # Exact fractions: rounding errors of floats could move the threshold by one.
        usual = Fraction(earlier, days) if days else Fraction(0)
        threshold = max(self.least, math.floor(Fraction(self.factor) * usual))
        if pictures <= threshold:
            return None
        return AbuseEvidence(pictures, float(usual), days, threshold)


def compared_days(day: date) -> list[date]:
    """Return the `DAYS_COMPARED` days before `day`, latest first."""
    return [day - timedelta(days=back) for back in range(1, DAYS_COMPARED + 1)]
