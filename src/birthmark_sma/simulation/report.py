"""Build the JSON report of a run. `chart` draws its SVG from the report. Pure.

docs/simulate.md documents the fields. A change of their meaning must change FORMAT.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from birthmark_sma import __version__
from birthmark_sma.simulation.expected_outcomes import (
    WHAT,
    Case,
    Environment,
    right_endings,
    undetectable_reason,
)
from birthmark_sma.simulation.plan import Plan, Role
from birthmark_sma.simulation.player import Play

FORMAT = 1


@dataclass(frozen=True, slots=True)
class RunMetadata:
    """The facts about a run that are in its report but not in its results."""

    url: str
    serial_prefix: str
    begun_at: datetime
    provisioning_seconds: float


def make_report(play: Play, there: RunMetadata) -> dict[str, Any]:
    """Return the report as a dict for JSON. docs/simulate.md describes each field."""
    tally, plan = play.tally, play.plan
    return {
        "format": FORMAT,
        "program": f"birthmark-sma {__version__}",
        "all_right": play.all_right,
        "stopped": play.stopped,
        "begun_at": there.begun_at.isoformat(timespec="seconds").replace("+00:00", "Z"),
        "seconds": round(play.seconds or 0.0, 3),
        "provisioning_seconds": round(there.provisioning_seconds, 3),
        "url": there.url,
        "serial_prefix": there.serial_prefix,
        "terms": _terms(plan),
        "surroundings": asdict(tally.surroundings),
        "pictures": {"planned": len(plan.pictures), "taken": play.taken.total()},
        "bundles": {
            "sent": play.sent,
            "right": tally.right,
            "wrong": tally.wrong,
            "lost": tally.lost,
        },
        "indeterminate": {
            "bundles": play.kept_waiting,
            "times": play.indeterminate.total(),
            "causes": dict(play.indeterminate.most_common()),
        },
        "verdict_seconds": summarise(play.waits),
        "latest_picture_seconds": round(play.late, 3),
        "cases": [_case(case, play) for case in Case if case in tally.endings],
        "unseen": _unseen(play.tally.endings, tally.surroundings),
        "surprises": [asdict(each) | {"right": sorted(each.right)} for each in tally.surprises],
        "thefts": [
            {
                "device_serial": each.device_serial,
                "report_seconds": (
                    None
                    if each.begun is None or each.ended is None
                    else round(each.ended - each.begun, 3)
                ),
                "failure": each.failure,
            }
            for each in play.thefts.values()
        ],
        "course": asdict(play.course),
    }


def _terms(plan: Plan) -> dict[str, Any]:
    roles = Counter(each.role for each in plan.cameras)
    # The numbers of cameras in the plan replace the shares in the terms.
    return asdict(plan.terms) | {
        "families": dict(Counter(each.family for each in plan.cameras)),
        "stolen": roles[Role.STOLEN],
        "wrong_clocks": roles[Role.FAST] + roles[Role.SLOW],
        "offline": sum(each.offline is not None for each in plan.cameras),
    }


def _case(case: Case, play: Play) -> dict[str, Any]:
    tally = play.tally
    right = right_endings(case, tally.surroundings)
    endings = tally.endings[case]
    good = sum(count for ending, count in endings.items() if ending in right)
    return {
        "case": case,
        "what": WHAT[case],
        "right": sorted(right),
        "ended": dict(sorted(endings.items())),
        "bundles": endings.total(),
        "bundles_right": good,
        "unseen": undetectable_reason(case, tally.surroundings) is not None,
    }


def _unseen(cases: Mapping[Case, object], there: Environment) -> list[dict[str, str]]:
    found = ((case, undetectable_reason(case, there)) for case in Case if case in cases)
    return [{"case": case, "why": why} for case, why in found if why is not None]


def summarise(waits: Sequence[float]) -> dict[str, float] | None:
    """Return median, 99th percentile and maximum of the waits in seconds, or None without any."""
    if not waits:
        return None
    ordered = sorted(waits)
    last = len(ordered) - 1
    return {
        "p50": round(ordered[last // 2], 4),
        "p99": round(ordered[last * 99 // 100], 4),
        "longest": round(ordered[-1], 4),
    }
