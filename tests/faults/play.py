"""Play a fault on a server under a light load, and say what clients and probes saw."""

import time
from collections import Counter
from collections.abc import Iterable

from tests.faults.beds import Bed
from tests.faults.fault import Fault, Result
from tests.faults.probes import LIVE, READY, Probed, Probes
from tests.high_availability.load import Heard, Load
from tests.high_availability.report import Outcome, take_stock
from tests.support.counting import assert_the_chains_at_verify
from tests.support.programs.running import wait_until

_BEFORE_SECONDS = 1.0
_BACK_SECONDS = 60.0
_AFTER_SECONDS = 0.5
_REACTION_SECONDS = 1.0  # answers that were on their way when the fault began
_HANGING_SECONDS = 7.0  # without any answer, though readiness reacts after 5


def play(fault: Fault, bed: Bed) -> Result:
    """Play one fault. Raises AssertionError if service is not back 60 seconds after its end.

    Raises it, too, if the chains of the audit log do not verify then.
    """
    load = Load(bed.urls, bed.new_camera())
    with Probes(bed.urls[0]) as probes:
        load.start()
        try:
            wait_until(lambda: probes.is_ready(0.0), _BACK_SECONDS)
            time.sleep(_BEFORE_SECONDS)
            began = time.monotonic()
            with fault.play(bed):
                time.sleep(fault.seconds)
                ends = time.monotonic()
            ended = time.monotonic()
            load.wait_for_service(_BACK_SECONDS)
            wait_until(lambda: probes.is_ready(ended), _BACK_SECONDS)
            time.sleep(_AFTER_SECONDS)
        finally:
            load.stop()
    stock = take_stock(fault.name, load, [bed.rows_url])
    assert_the_chains_at_verify(bed.rows_url)
    back = load.served_from(ended)
    heard = [each for each in load.heard if began < each.at <= back]
    ready = probes.between(READY, began, time.monotonic())
    live = probes.between(LIVE, began, time.monotonic())
    unready = [each for each in ready if each.status != 200]
    return Result(
        name=fault.name,
        bed=fault.bed.value,
        clients=describe_answers(heard),
        gap=stock.seconds,
        unready=unready[0].at - began if unready else None,
        ready=_ready_again(ready, ended) if unready else None,
        live=describe_probes(live),
        back=back - ended,
        acknowledged=stock.acknowledged,
        lost=stock.lost,
        doubled=stock.doubled,
        wrong=stock.wrong,
        complaints=tuple(
            complaints(
                fault, stock, lasted=(began, ends), heard=load.heard, unready=unready, live=live
            )
        ),
    )


def describe_answers(heard: Iterable[Heard]) -> str:
    """Return what clients got, in the order in which they first got it."""
    answers = list(heard)
    counts = Counter(each.status for each in answers)
    parts = []
    for status, number in counts.items():
        waits = [each.retry_after for each in answers if each.status == status and each.retry_after]
        after = f" (Retry-After {_range(waits)} s)" if waits else ""
        parts.append(f"{status or 'no answer'}: {number}{after}")
    slowest = max((each.seconds for each in answers), default=0.0)
    return f"{', then '.join(parts)}; slowest {slowest:.1f} s"


def _range(numbers: list[int]) -> str:
    low, high = min(numbers), max(numbers)
    return f"{low}" if low == high else f"{low} to {high}"


def describe_probes(probes: Iterable[Probed]) -> str:
    """Return the statuses of the probes, and the time of the slowest."""
    made = list(probes)
    counts = Counter(each.status for each in made)
    parts = [
        str(status) if len(counts) == 1 else f"{status or 'no answer'}: {number}"
        for status, number in counts.items()
    ]
    slowest = max((each.at - each.sent_at for each in made), default=0.0)
    return f"{', '.join(parts)}; slowest {slowest * 1e3:.0f} ms"


def _ready_again(ready: list[Probed], ended: float) -> float:
    """Return after how many seconds ready said 200 for good. 0 if it did before the end."""
    last_bad = max(number for number, each in enumerate(ready) if each.status != 200)
    return max(0.0, ready[last_bad + 1].at - ended)


def complaints(
    fault: Fault,
    stock: Outcome,
    *,
    lasted: tuple[float, float],
    heard: Iterable[Heard],
    unready: list[Probed],
    live: list[Probed],
) -> Iterable[str]:
    """Return what must not happen and did: losses, and probes that did not tell the truth."""
    if not stock.is_clean:
        yield f"{stock.lost} lost, {stock.doubled} doubled, {stock.wrong} wrong"
    began, ends = lasted[0] + _REACTION_SECONDS, lasted[1]
    statuses = {each.status for each in heard if began < each.at <= ends}
    all_failed = 200 not in statuses and (statuses or ends - began >= _HANGING_SECONDS)
    if all_failed and not unready:
        yield "ready stayed 200 while every write failed"
    if not fault.ends_server and any(each.status != 200 for each in live):
        yield "live failed"
