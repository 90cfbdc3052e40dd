"""When a device is far above its usual rate. PURE: no clock, no database, nothing is done here.

Who makes pictures in bulk with one device, as with keys that were taken out of it, stands out
against what that device did before. What is compared counts only pictures that a caller with a
credential brought and that got PASS: nobody else can make a device stand out, or hide one.
"""

import math
from dataclasses import dataclass
from datetime import date, timedelta
from fractions import Fraction
from typing import NamedTuple

DAYS_COMPARED = 28
"""Four whole weeks, so that each day of the week counts the same."""


class Activity(NamedTuple):
    """What a device did on a day, and before: `earlier` pictures on `days` days that it was active.

    `earlier` and `days` are of the `DAYS_COMPARED` days before; idle days are not among `days`.
    """

    pictures: int
    earlier: int = 0
    days: int = 0


class AbuseEvidence(NamedTuple):
    """The counts that flag a device: more `pictures` on a day than `threshold`.

    `usual` is the mean of pictures a day, over `days_compared` days.
    """

    pictures: int
    usual: float
    days_compared: int
    threshold: int


@dataclass(frozen=True, slots=True)
class AbusePolicy:
    """More than `least` pictures a day are too many, where they are `factor` times the usual."""

    factor: float
    least: int

    def judge(self, activity: Activity) -> AbuseEvidence | None:
        """Return the counts of a device that is far above its usual rate, else None.

        Of a device without earlier days nothing is known but `least`.
        """
        pictures, earlier, days = activity
        usual = Fraction(earlier, days) if days else Fraction(0)
        threshold = max(self.least, math.floor(Fraction(self.factor) * usual))
        if pictures <= threshold:
            return None
        return AbuseEvidence(pictures, float(usual), days, threshold)


def compared_days(day: date) -> list[date]:
    """Return the days before a day that it is compared with, latest first."""
    return [day - timedelta(days=back) for back in range(1, DAYS_COMPARED + 1)]
