"""Build the plan of a run: all actions of all cameras, drawn from a seed.

Pure: the same terms must give the same plan. So the order of the random draws is part of the
result, and a change of it changes the plan of every seed. Keys, nonces and serials are not in the
plan. Cameras draw them, like real ones.
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
"""Up to 600 s in both directions. All certificates and aggregation servers tolerate this."""
_FAR_OFF = (2 * 3600.0, 30 * 86400.0)  # seconds; beyond the tolerance of one hour (CLOCK_SKEW)
_REMEMBERED = 200
"""A replay uses one of the last 200 pictures, so that few bundles must be kept."""


@dataclass(frozen=True, slots=True)
class Terms:
    """The parameters of a run. Raises ConfigurationError if they are out of bounds.

    `seconds` is the duration, `rate` the average number of pictures a second. With `day` the run
    represents one day from midnight to midnight, and each family follows its hours.
    These are shares of the pictures, from 0 to 1: `dual` (sent to all aggregation servers; the
    others go to one), `tampering`, `clones`, `replays`. These are shares of the cameras, from 0 to
    1: `stolen`, `wrong_clocks`, `offline`.
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
                _refuse(f"{name} must be between 0 and 1, not {getattr(self, name)}")
        if self.tampering + self.clones + self.replays > 1:
            _refuse("tampering, clones and replays must not add up to more than 1")
        if not 1 <= self.cameras <= MAX_CAMERAS:
            _refuse(f"The number of cameras must be between 1 and {MAX_CAMERAS:,}")
        if not 1 <= self.aggregators <= MAX_AGGREGATORS:
            _refuse(f"The number of aggregation servers must be between 1 and {MAX_AGGREGATORS}")
        if not (isfinite(self.seconds) and 0 < self.seconds <= MAX_SECONDS):
            _refuse("A run must last more than 0 seconds and at most one day")
        if not (isfinite(self.rate) and 0 < self.rate <= MAX_PICTURES):
            _refuse("The rate must be more than 0 pictures a second")
        if self.pictures > MAX_PICTURES:
            _refuse(f"A run has at most {MAX_PICTURES:,} pictures, not {self.pictures:,}")
        if not self.families:
            _refuse("There must be at least one family")

    @property
    def pictures(self) -> int:
        """The number of pictures in the run, at least 1."""
        return max(1, round(self.rate * self.seconds))


class Role(Enum):
    """The fault of a camera, if it has one."""

    ORDINARY = "ordinary"
    STOLEN = "stolen"
    FAST = "clock far ahead"
    SLOW = "clock far behind"


@dataclass(frozen=True, slots=True)
class CameraPlan:
    """One camera. All times are in seconds from the beginning of the run.

    `clock` is the number of seconds by which its clock is ahead at the beginning. `drift` is the
    number of seconds that it gains in each second. A thief takes the pictures of a stolen camera
    from `stolen_at` on. It is reported at `reported_at`.
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
        """Return true if the camera has no network at this time."""
        return self.offline is not None and self.offline[0] <= at < self.offline[1]


@dataclass(frozen=True, slots=True)
class Picture:
    """One picture or forgery: its time, its camera, its case and its aggregation servers.

    `at` is in seconds from the beginning of the run. `source` is the number of the earlier picture
    that a replay uses.
    """

    number: int
    at: float
    camera: int
    case: Case
    to: tuple[int, ...]
    source: int | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """A whole run: the cameras, and the pictures sorted by time."""

    terms: Terms
    cameras: tuple[CameraPlan, ...]
    pictures: tuple[Picture, ...]

    def planned(self) -> Mapping[Case, int]:
        """Return the number of pictures for each case."""
        return Counter(each.case for each in self.pictures)

    def sources(self) -> frozenset[int]:
        """Return the numbers of the pictures that replays use."""
        return frozenset(each.source for each in self.pictures if each.source is not None)


def build_plan(terms: Terms) -> Plan:
    """Return the plan for the terms and their seed."""
    chance = random.Random(terms.seed)  # noqa: S311  no secret: a seed must repeat its plan
    cameras = _cameras(terms, chance)
    pictures = _with_cases(_taken(terms, cameras, chance), terms, cameras, chance)
    return Plan(terms, cameras, tuple(pictures))


def plan_of_one(terms: Terms, cases: Sequence[Case]) -> Plan:
    """Return the plan of one camera that takes pictures at a constant rate, with cases in turn.

    A replay uses the last genuine picture. Without one, the picture becomes genuine.
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
    left = order[1:]  # at least one camera stays ordinary
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
    """Return the camera with its clock, and its times of being offline or stolen."""
    # Drawn for every camera, also if unused. So a role does not shift the draws of other cameras.
    off = chance.uniform(*_FAR_OFF)
    clock = {Role.FAST: off, Role.SLOW: -off}.get(
        camera.role, chance.uniform(-1, 1) * _SMALL_DRIFT / 2
    )
    # Half of _SMALL_DRIFT is for the clock at the beginning, half for the drift of the whole run.
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
    """Return a family for each camera in proportion to the shares (largest remainder method)."""
    total = sum(each.share for each in families)
    exact = [each.share / total * cameras for each in families]
    counts = [floor(each) for each in exact]
    by_remainder = sorted(range(len(families)), key=lambda n: counts[n] - exact[n])
    for n in by_remainder[: cameras - sum(counts)]:
        counts[n] += 1
    return [each for each, count in zip(families, counts, strict=True) for _ in range(count)]


def _some(left: list[int], share: float, of: int) -> list[int]:
    """Remove a share of `of` cameras from `left` and return it; at least one if `share` > 0."""
    count = min(len(left), max(round(share * of), 1 if share > 0 else 0))
    taken, left[:] = left[:count], left[count:]
    return taken


# --- pictures


def _taken(terms: Terms, cameras: Sequence[CameraPlan], chance: random.Random) -> list[Picture]:
    """Return the pictures sorted by time, all with the case GENUINE."""
    by_family: dict[str, list[int]] = {}
    for each in cameras:
        by_family.setdefault(each.family, []).append(each.number)
    families = [each for each in terms.families if each.name in by_family]
    hours: list[int | None] = list(range(HOURS)) if terms.day else [None]
    busy = [[len(by_family[f.name]) * f.activity(hour) for f in families] for hour in hours]
    by_hour = list(accumulate(map(sum, busy)))
    taken: list[tuple[float, int, tuple[int, ...]]] = []
    for _ in range(terms.pictures):
        # A random point on the cumulative activity: busy hours get more pictures.
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
    """Return the pictures with their cases.

    Only pictures of ordinary cameras are tampered, cloned and replayed, so each picture has at most
    one fault and its right outcome is known.
    """
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
    """Turn the numbered pictures into replays. Those without an earlier picture stay genuine."""
    wanted = set(numbers)
    earlier: list[Picture] = []
    made = 0
    for each in list(pictures):
        camera = cameras[each.camera]
        if each.number in wanted:
            case = REPLAYS[made % len(REPLAYS)]
            source = _source(earlier[-_REMEMBERED:], each, case, chance)
            if source is not None:
                # To the servers of the source: another server has not seen its bundle before.
                pictures[each.number] = replace(
                    each, case=case, to=source.to, source=source.number,
                    camera=each.camera if case is Case.BORROWED_CAMERA_TOKEN else source.camera,
                )  # fmt: skip
                made += 1
                continue
        # Not from an offline camera: it sends later, and a replay would have to wait for it.
        if each.case is Case.GENUINE and camera.role is Role.ORDINARY and not camera.offline:
            earlier.append(each)


def _source(
    earlier: Sequence[Picture], picture: Picture, case: Case, chance: random.Random
) -> Picture | None:
    """Return an earlier picture for a replay, or None. A borrowed token needs another camera."""
    fitting = [
        each
        for each in earlier
        if case is not Case.BORROWED_CAMERA_TOKEN or each.camera != picture.camera
    ]
    return chance.choice(fitting) if fitting else None


def _refuse(sentence: str) -> None:
    raise ConfigurationError(f"{sentence}.")
