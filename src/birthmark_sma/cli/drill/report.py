"""Make the report of a drill from its course: figures, renewal curve and marks. No I/O.

`command` calls it. Seconds count from the decision, which is the moment before the act, unless a
name says otherwise. Every mark has a limit that a drill can miss.
"""

from collections.abc import Iterator, Sequence, Set
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from birthmark_sma.cli.drill.causes import Cause
from birthmark_sma.cli.drill.devices import DrillDevice
from birthmark_sma.cli.drill.load import Sample
from birthmark_sma.cli.drill.publication import Fetched
from birthmark_sma.cli.drill.run import Course
from birthmark_sma.simulation.report import summarise

_COURSE_BARS = 60
_ACT_SECONDS = 10.0
_LIST_SECONDS = 10.0
_OCSP_SECONDS = 2.0
_VERIFIER_SECONDS = 3.0
"""The time after which a verifier that fetches its lists each second refuses a lost issuer."""
_SETTLE_SECONDS = 5.0
"""A reinstated device passes after this time: verifiers have to see a newer list first."""
_MOST_LISTED = 10


@dataclass(frozen=True, slots=True)
class Mark:
    """A pass mark: what was measured, the limit, and whether it holds."""

    name: str
    measured: str
    limit: str
    holds: bool


def make_report(course: Course) -> dict[str, Any]:
    """Return the report as a JSON object. `passed` tells whether all marks hold."""
    concerned = frozenset(course.concerned)
    wrong_passes = [e for e in course.samples if _is_wrong_pass(course, concerned, e)]
    wrong_fails = [e for e in course.samples if _is_wrong_fail(course, concerned, e)]
    last = max((each.answered_at for each in wrong_passes), default=None)
    late = [each for each in course.concerned if not _renewed_in_time(course, each.renewed_at)]
    left = [each for each in course.concerned if each.renewed_at is None]
    marks = [
        *_marks_of_act(course, wrong_passes, last),
        *_marks_of_pictures(course, wrong_fails),
        *_marks_of_renewals(course, late, left),
    ]
    return {
        "cause": course.options.cause.value,
        "subject": course.subject or "all key tables",
        "passed": all(each.holds for each in marks) and not course.is_stopped,
        "stopped": course.is_stopped,
        "decided_at": _iso(course.decided_at),
        "devices": {
            "simulated": len(course.devices),
            "concerned": len(course.concerned),
            "in_the_act": course.acted_on,
            "in_the_order": sum(each.matched for each in course.orders),
            "renewed": len(course.concerned) - len(left),
            "offline": sum(each.is_offline for each in course.concerned),
        },
        "seconds": {
            "to_commit": _since(course, course.committed_at),
            "to_last_wrong_pass": _since(course, last),
            "to_list": _since(course, _shown_at(course.list_after)),
            "to_ocsp": _since(course, _shown_at(course.ocsp)),
            "to_order": _since(course, course.ordered_at),
            "to_last_renewal": _since(course, _last_renewal(course)),
            "to_end": _since(course, course.ended_at),
        },
        "wrong_passes": len(wrong_passes),
        "wrong_fails": len(wrong_fails),
        "publication": {
            "list_of": course.list_name,
            "list_before": _size(course.list_before),
            "list_after": _size(course.list_after),
            "ocsp": _size(course.ocsp),
        },
        "renewals": _renewals(course),
        "load": _load(course),
        "responses": {str(status): n for status, n in sorted(course.answers.items())},
        "stragglers": {
            "at_the_end_of_the_order": len(late),
            "at_the_end": len(left),
            "serials": [each.new.device_serial for each in (left or late)[:_MOST_LISTED]],
        },
        "exposure": _exposure(course),
        "copy": course.kept,
        "marks": [asdict(each) for each in marks],
    }


def _marks_of_act(
    course: Course, wrong_passes: Sequence[Sample], last: float | None
) -> Iterator[Mark]:
    """Yield the marks of the act, of the last wrong PASS, of the list and of OCSP."""
    took = course.committed_at - course.decided_at
    yield Mark("the act is committed", _seconds(took), f"{_ACT_SECONDS:g} s", took <= _ACT_SECONDS)
    match course.options.cause:
        case Cause.INTERMEDIATE_KEY:
            bound = course.committed_at + _VERIFIER_SECONDS
            limit = f"{_VERIFIER_SECONDS:g} s after the commit"
        case Cause.KEY_TABLE:
            bound, limit = course.ended_at, "the end of the overlap"
        case _:
            bound, limit = course.committed_at, "the commit"
    # Only what was sent after the bound counts: a verdict may be under way at the commit.
    late = [each for each in wrong_passes if each.sent_at > bound]
    measured = "none" if last is None else _seconds(last - course.decided_at)
    yield Mark("the last wrong PASS", measured, f"sent before {limit}", not late)
    shown = _shown_at(course.list_after)
    yield _shown("the revocation list shows it", course.decided_at, shown, _LIST_SECONDS)
    if course.lost_issuer is None:
        # The contract counts from the commit.
        yield _shown("OCSP shows it", course.committed_at, _shown_at(course.ocsp), _OCSP_SECONDS)


def _marks_of_pictures(course: Course, wrong_fails: Sequence[Sample]) -> Iterator[Mark]:
    undecided = sum(each.passed is None or each.verified is None for each in course.samples)
    yield Mark("genuine pictures that failed", f"{len(wrong_fails):,}", "0", not wrong_fails)
    yield Mark("pictures without a verdict", f"{undecided:,}", "0", not undecided)


def _marks_of_renewals(
    course: Course, late: Sequence[DrillDevice], left: Sequence[DrillDevice]
) -> Iterator[Mark]:
    awake, missed = _count_awake(course.concerned), _count_awake(late)
    yield Mark(
        "renewed within the order's time, of those that were on",
        f"{awake - missed:,}",
        f"{awake:,}",
        not missed,
    )
    total = len(course.concerned)
    yield Mark("renewed at the end", f"{total - len(left):,}", f"{total:,}", total > 0 and not left)


def _shown_at(fetched: Fetched | None) -> float | None:
    return None if fetched is None else fetched.shown_at


def _shown(name: str, since: float, at: float | None, limit: float) -> Mark:
    measured = "never" if at is None else _seconds(max(0.0, at - since))
    return Mark(name, measured, f"{limit:g} s", at is not None and at - since <= limit)


def _is_wrong_pass(course: Course, concerned: Set[DrillDevice], each: Sample) -> bool:
    """Return whether a picture passed after the decision that should not have."""
    if not each.passed or each.sent_at < course.decided_at:
        return False
    match course.options.cause:
        case Cause.INTERMEDIATE_KEY:
            # The authority validates tokens; that the issuer is lost is for verifiers to see.
            return bool(each.verified) and each.issuer == course.lost_issuer
        case Cause.KEY_TABLE:
            return each.is_forged
        case _:
            # From the recovery on, the devices are reinstated.
            is_over = course.recovering_at and each.answered_at >= course.recovering_at
            return each.device in concerned and not is_over


def _is_wrong_fail(course: Course, concerned: Set[DrillDevice], each: Sample) -> bool:
    """Return whether a genuine picture, whose device is good, was refused."""
    if each.is_forged or each.passed is None or each.verified is None:
        return False
    if each.passed and each.verified:
        return False
    match course.options.cause:
        case Cause.INTERMEDIATE_KEY:
            is_bad = each.answered_at >= course.decided_at
            return not (is_bad and each.issuer == course.lost_issuer)
        case Cause.KEY_TABLE:
            return True
        case _:
            before = each.answered_at < course.decided_at
            settled = course.ordered_at and each.sent_at >= course.ordered_at + _SETTLE_SECONDS
            return bool(before or settled) or each.device not in concerned


def _count_awake(devices: Sequence[DrillDevice]) -> int:
    return sum(not each.is_offline for each in devices)


def _renewed_in_time(course: Course, at: float | None) -> bool:
    # A window ends with the order, and the device renews at a moment of it.
    return at is not None and at <= course.ordered_at + course.options.within + 1


def _renewals(course: Course) -> dict[str, Any]:
    """Return the renewal curve, in equal parts of the time from the order to the end."""
    span = max(course.ended_at - course.ordered_at, 1.0)
    times = [each.renewed_at for each in course.concerned if each.renewed_at is not None]
    durations = [each.seconds for each in course.concerned if each.renewed_at is not None]
    width = span / _COURSE_BARS
    done = _histogram([at - course.ordered_at for at in times], width)
    return {
        "within_seconds": course.options.within,
        "seconds_of_a_part": round(width, 3),
        "planned": _histogram([at - course.ordered_at for at in course.windows_at], width),
        "done": done,
        "most_a_second": round(max(done) / width, 1),
        "latency_seconds": summarise(durations),
    }


def _histogram(seconds: Sequence[float], width: float) -> list[int]:
    counts = [0] * _COURSE_BARS
    for each in seconds:
        counts[min(_COURSE_BARS - 1, max(0, int(each / width)))] += 1
    return counts


def _load(course: Course) -> dict[str, Any]:
    before = [each for each in course.samples if each.sent_at < course.decided_at]
    after = [each for each in course.samples if each.sent_at >= course.decided_at]
    return {
        "pictures_a_second": course.options.rate,
        "pictures": len(course.samples),
        "passed": sum(each.passed is True for each in course.samples),
        "failed": sum(each.passed is False for each in course.samples),
        "latency_seconds_before": summarise([each.seconds for each in before]),
        "latency_seconds_during": summarise([each.seconds for each in after]),
    }


def _exposure(course: Course) -> dict[str, Any] | None:
    """Return who is exposed if one camera is opened: the stolen one, else the first one."""
    if course.exposure is None:
        return None
    camera = course.stolen or course.devices[0]
    return {
        "camera": camera.new.device_serial,
        "tables": list(course.exposure.tables),
        "devices": course.exposure.devices,
        "devices_by_shared_tables": dict(course.exposure.devices_by_shared),
        "forged_for_a_victim": course.has_victim if course.stolen is not None else None,
    }


def _last_renewal(course: Course) -> float | None:
    return max((e.renewed_at for e in course.concerned if e.renewed_at is not None), default=None)


def _since(course: Course, time: float | None) -> float | None:
    return None if not time else round(time - course.decided_at, 3)


def _size(fetched: Fetched | None) -> dict[str, float] | None:
    if fetched is None:
        return None
    return {"bytes": fetched.size, "milliseconds": round(fetched.milliseconds, 1)}


def _seconds(number: float) -> str:
    return f"{number:.2f} s"


def _iso(time: float) -> str | None:
    return datetime.fromtimestamp(time, UTC).isoformat() if time else None
