"""What each camera does when, drawn from a seed. Pure: the same terms give the same plan.

Keys, nonces and serials are not of the plan: cameras draw them, as real ones do.
"""

import random
from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from itertools import accumulate
from math import floor, isfinite

from birthmark_sma.errors import ConfigurationError
from birthmark_sma.simulation.camera_families import FAMILIES, HOURS, Family
from birthmark_sma.simulation.expected_outcomes import CLONES, REPLAYS, TAMPERING, Case

MAX_CAMERAS = 10_000
MAX_PICTURES = 1_000_000
MAX_SECONDS = 24 * 3600.0
MAX_AGGREGATORS = 8
_SMALL_DRIFT = 600.0
"""Up to ten minutes either way: what every certificate and every aggregation server allows for."""
_FAR_OFF = (2 * 3600.0, 30 * 86400.0)
_REMEMBERED = 200
"""A replay takes one of so many last pictures, so that few bundles have to be kept."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What to play. Rates are of pictures, shares are of cameras, both from 0 to 1.

    `seconds` is how long it takes, `rate` how many pictures a second there are on average. With
    `day` the run is one day from midnight to midnight, and the hours of the families count.
    `dual` is how many pictures go to all aggregation servers, rather than to one of them.
    """

    cameras: int = 20
    seconds: float = 30.0
    rate: float = 20.0
    seed: int = 0
    families: tuple[Family, ...] = FAMILIES
    aggregators: int = 2
    dual: float = 1.0
    day: bool = True
    tampering: float = 0.05
    clones: float = 0.02
    replays: float = 0.02
    stolen: float = 0.02
    wrong_clocks: float = 0.02
    offline: float = 0.1

    def __post_init__(self) -> None:
        for name in ("dual", "tampering", "clones", "replays", "stolen", "wrong_clocks", "offline"):
            if not 0 <= getattr(self, name) <= 1:
                _refuse(f"{name} lies from 0 to 1, not at {getattr(self, name)}")
        if self.tampering + self.clones + self.replays > 1:
            _refuse("tampering, clones and replays are more than all pictures together")
        if not 1 <= self.cameras <= MAX_CAMERAS:
            _refuse(f"There are 1 to {MAX_CAMERAS:,} cameras")
        if not 1 <= self.aggregators <= MAX_AGGREGATORS:
            _refuse(f"There are 1 to {MAX_AGGREGATORS} aggregation servers")
        if not (isfinite(self.seconds) and 0 < self.seconds <= MAX_SECONDS):
            _refuse("A run lasts longer than 0 seconds, and a day at most")
        if not (isfinite(self.rate) and 0 < self.rate <= MAX_PICTURES):
            _refuse("The rate is more than 0 pictures a second")
        if self.pictures > MAX_PICTURES:
            _refuse(f"A run has at most {MAX_PICTURES:,} pictures, not {self.pictures:,}")
        if not self.families:
            _refuse("There is at least one family")

    @property
    def pictures(self) -> int:
        """How many pictures are taken in all."""
        return max(1, round(self.rate * self.seconds))


class Role(Enum):
    """What is the matter with a camera."""

    ORDINARY = "ordinary"
    STOLEN = "stolen"
    FAST = "clock far ahead"
    SLOW = "clock far behind"


@dataclass(frozen=True, slots=True)
class CameraPlan:
    """One camera. Times are seconds from the beginning of the run.

    `clock` is by how many seconds its clock is ahead at the beginning, `drift` by how many it gains
    a second. A stolen one is in other hands from `stolen_at`, and reported at `reported_at`.
    """

    number: int
    family: str
    role: Role
    clock: float
    drift: float
    offline: tuple[float, float] | None = None
    stolen_at: float | None = None
    reported_at: float | None = None

    def is_offline(self, at: float) -> bool:
        """Whether it has no network at this moment."""
        return self.offline is not None and self.offline[0] <= at < self.offline[1]


@dataclass(frozen=True, slots=True)
class Picture:
    """One picture, or one forgery: when, by or in the name of which camera, and for whom.

    `source` is the number of the earlier picture that a replay begins with.
    """

    number: int
    at: float
    camera: int
    case: Case
    to: tuple[int, ...]
    source: int | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """All of a run: the cameras, and the pictures in the order of their times."""

    terms: Terms
    cameras: tuple[CameraPlan, ...]
    pictures: tuple[Picture, ...]

    def planned(self) -> Mapping[Case, int]:
        """How many pictures there are of each case."""
        return Counter(each.case for each in self.pictures)

    def sources(self) -> frozenset[int]:
        """The numbers of the pictures that a replay begins with."""
        return frozenset(each.source for each in self.pictures if each.source is not None)


def build_plan(terms: Terms) -> Plan:
    """Return what the terms and their seed come to."""
    chance = random.Random(terms.seed)  # noqa: S311  no secret: to be drawn again from its seed
    cameras = _cameras(terms, chance)
    pictures = _with_cases(_taken(terms, cameras, chance), terms, cameras, chance)
    return Plan(terms, cameras, tuple(pictures))


def plan_of_one(terms: Terms, cases: Sequence[Case]) -> Plan:
    """Return the plan of one camera that takes pictures at one pace, with the cases in turn.

    A replay begins with the last genuine picture; before there is one, the picture is genuine.
    """
    pictures: list[Picture] = []
    last: int | None = None
    for number in range(terms.pictures):
        case = cases[number % len(cases)]
        if case in REPLAYS and last is None:
            case = Case.GENUINE
        source = last if case in REPLAYS else None
        pictures.append(Picture(number, number / terms.rate, 0, case, (0,), source))
        last = number if case is Case.GENUINE else last
    camera = CameraPlan(0, terms.families[0].name, Role.ORDINARY, 0.0, 0.0)
    return Plan(terms, (camera,), tuple(pictures))


# --- cameras


def _cameras(terms: Terms, chance: random.Random) -> tuple[CameraPlan, ...]:
    families = _spread(terms.families, terms.cameras)
    chance.shuffle(families)
    order = list(range(terms.cameras))
    chance.shuffle(order)
    left = order[1:]  # one at least is ordinary
    roles = dict.fromkeys(order, Role.ORDINARY)
    for number in _some(left, terms.stolen, terms.cameras):
        roles[number] = Role.STOLEN
    for n, number in enumerate(_some(left, terms.wrong_clocks, terms.cameras)):
        roles[number] = (Role.FAST, Role.SLOW)[n % 2]
    offline = set(_some(left, terms.offline, terms.cameras))
    return tuple(
        _camera(
            CameraPlan(number, families[number].name, roles[number], 0.0, 0.0),
            terms,
            chance,
            is_offline=number in offline,
        )
        for number in range(terms.cameras)
    )


def _camera(
    camera: CameraPlan, terms: Terms, chance: random.Random, *, is_offline: bool
) -> CameraPlan:
    """Give a camera its clock, and the time that it is offline or in other hands."""
    off = chance.uniform(*_FAR_OFF)
    clock = {Role.FAST: off, Role.SLOW: -off}.get(
        camera.role, chance.uniform(-1, 1) * _SMALL_DRIFT / 2
    )
    drift = chance.uniform(-1, 1) * min(1e-4, _SMALL_DRIFT / 2 / terms.seconds)
    camera = replace(camera, clock=clock, drift=drift)
    begins, lasts = chance.uniform(0.1, 0.6), chance.uniform(0.1, 0.3)
    span = (begins * terms.seconds, (begins + lasts) * terms.seconds)
    if is_offline:
        return replace(camera, offline=span)
    if camera.role is Role.STOLEN:
        return replace(camera, stolen_at=span[0], reported_at=span[1])
    return camera


def _spread(families: Sequence[Family], cameras: int) -> list[Family]:
    """Return a family for each camera, by their shares, largest remainders first."""
    total = sum(each.share for each in families)
    exact = [each.share / total * cameras for each in families]
    counts = [floor(each) for each in exact]
    by_remainder = sorted(range(len(families)), key=lambda n: counts[n] - exact[n])
    for n in by_remainder[: cameras - sum(counts)]:
        counts[n] += 1
    return [each for each, count in zip(families, counts, strict=True) for _ in range(count)]


def _some(left: list[int], share: float, of: int) -> list[int]:
    """Take a share away from what is left; one at least where a share is wanted at all."""
    count = min(len(left), max(round(share * of), 1 if share > 0 else 0))
    taken, left[:] = left[:count], left[count:]
    return taken


# --- pictures


def _taken(terms: Terms, cameras: Sequence[CameraPlan], chance: random.Random) -> list[Picture]:
    """Return the pictures without their cases, sorted by time."""
    by_family: dict[str, list[int]] = {}
    for each in cameras:
        by_family.setdefault(each.family, []).append(each.number)
    families = [each for each in terms.families if each.name in by_family]
    hours: list[int | None] = list(range(HOURS)) if terms.day else [None]
    busy = [[len(by_family[f.name]) * f.activity(hour) for f in families] for hour in hours]
    by_hour = list(accumulate(map(sum, busy)))
    taken: list[tuple[float, int, tuple[int, ...]]] = []
    for _ in range(terms.pictures):
        hour = bisect_left(by_hour, chance.random() * by_hour[-1])
        at = (hour + chance.random()) / len(hours) * terms.seconds
        family = chance.choices(families, busy[hour])[0]
        taken.append((at, chance.choice(by_family[family.name]), _addressees(terms, chance)))
    taken.sort()
    return [Picture(n, at, camera, Case.GENUINE, to) for n, (at, camera, to) in enumerate(taken)]


def _addressees(terms: Terms, chance: random.Random) -> tuple[int, ...]:
    if chance.random() < terms.dual:
        return tuple(range(terms.aggregators))
    return (chance.randrange(terms.aggregators),)


def _with_cases(
    pictures: list[Picture], terms: Terms, cameras: Sequence[CameraPlan], chance: random.Random
) -> list[Picture]:
    """Give each picture its case. Only ordinary cameras are forged, cloned and replayed, so that
    each picture has one thing the matter with it."""
    total = len(pictures)
    pictures = [_by_role(each, cameras[each.camera]) for each in pictures]
    free = [each.number for each in pictures if cameras[each.camera].role is Role.ORDINARY]
    chance.shuffle(free)
    for kinds, rate in ((TAMPERING, terms.tampering), (CLONES, terms.clones)):
        count = round(rate * total)
        chosen, free = free[:count], free[count:]
        for n, number in enumerate(chosen):
            pictures[number] = replace(pictures[number], case=kinds[n % len(kinds)])
    _replay(pictures, sorted(free[: round(terms.replays * total)]), cameras, chance)
    return pictures


def _by_role(picture: Picture, camera: CameraPlan) -> Picture:
    if camera.role is Role.FAST:
        return replace(picture, case=Case.FAST_CLOCK)
    if camera.role is Role.SLOW:
        return replace(picture, case=Case.SLOW_CLOCK)
    if camera.stolen_at is not None and picture.at >= camera.stolen_at:
        return replace(picture, case=Case.STOLEN)
    return picture


def _replay(
    pictures: list[Picture],
    numbers: Sequence[int],
    cameras: Sequence[CameraPlan],
    chance: random.Random,
) -> None:
    """Make replays of pictures that have an earlier one to begin with; the others stay genuine."""
    wanted = set(numbers)
    earlier: list[Picture] = []
    made = 0
    for each in list(pictures):
        camera = cameras[each.camera]
        if each.number in wanted:
            case = REPLAYS[made % len(REPLAYS)]
            source = _source(earlier[-_REMEMBERED:], each, case, chance)
            if source is not None:
                pictures[each.number] = replace(
                    each, case=case, to=source.to, source=source.number,
                    camera=each.camera if case is Case.BORROWED_CAMERA_TOKEN else source.camera,
                )  # fmt: skip
                made += 1
                continue
        if each.case is Case.GENUINE and camera.role is Role.ORDINARY and not camera.offline:
            earlier.append(each)


def _source(
    earlier: Sequence[Picture], picture: Picture, case: Case, chance: random.Random
) -> Picture | None:
    fitting = [
        each
        for each in earlier
        if case is not Case.BORROWED_CAMERA_TOKEN or each.camera != picture.camera
    ]
    return chance.choice(fitting) if fitting else None


def _refuse(sentence: str) -> None:
    raise ConfigurationError(f"{sentence}.")
