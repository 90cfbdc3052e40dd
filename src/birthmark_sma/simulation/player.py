"""Play a plan: take each picture at its time, send its bundle, and count the outcome.

`run` starts it. Time is bounded: no picture is taken later than `settle` seconds after the plan's
end. After another `settle` seconds all tasks are cancelled, and bundles without a verdict are lost.
Memory is bounded: at most `_UNDER_WAY` tasks exist at once. A slow machine takes pictures late. The
report contains the greatest delay.
"""

import asyncio
import functools
import hashlib
from array import array
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any

from birthmark_sma.client import Cause
from birthmark_sma.device import Delivery, bundle_id
from birthmark_sma.errors import BirthmarkError
from birthmark_sma.protocol.bundle import Bundle
from birthmark_sma.simulation.aggregation.aggregation_server import Aggregator, Judgement
from birthmark_sma.simulation.expected_outcomes import Case, Outcome
from birthmark_sma.simulation.fleet import PlayedCamera
from birthmark_sma.simulation.plan import Picture, Plan, Role
from birthmark_sma.simulation.results import Tally

BINS = 96
"""The number of equal time intervals in `Progress`."""
_UNDER_WAY = 5_000  # tasks at once; limits the memory
_PAUSE = 0.2  # seconds between two checks for a halt or the end

Report = Callable[[str], Coroutine[Any, Any, str | None]]


@dataclass(slots=True)
class TheftReport:
    """The report of a stolen camera. Times are those of the event loop, in seconds."""

    device_serial: str
    begun: float | None = None
    ended: float | None = None
    failure: str | None = None

    def case_of(self, planned: Case, sent: float, judged: float) -> Case:
        """Return the case of a picture of this camera, given the times of sending and judgement.

        A picture between the begin and the end of the report may pass or fail: BEING_REPORTED.
        """
        if self.begun is None or judged <= self.begun:
            return planned
        if self.ended is not None and sent >= self.ended:
            return Case.REPORTED
        return Case.BEING_REPORTED


@dataclass(slots=True)
class Progress:
    """The number of bundles in each of the BINS intervals of a run.

    `passed` and `refused` are right outcomes. `wrong` includes lost bundles.
    """

    passed: list[int] = field(default_factory=lambda: [0] * BINS)
    refused: list[int] = field(default_factory=lambda: [0] * BINS)
    wrong: list[int] = field(default_factory=lambda: [0] * BINS)


class Play:
    """One run. The event loop owns it. Its public attributes may be read during the run."""

    def __init__(
        self,
        plan: Plan,
        cameras: Sequence[PlayedCamera],
        aggregators: Sequence[Aggregator],
        tally: Tally,
        *,
        report: Report | None,
        settle: float,
    ) -> None:
        self.plan = plan
        self.tally = tally
        self.taken: Counter[Case] = Counter()
        self.sent = 0
        self.late = 0.0
        self.not_taken = 0
        self.stopped = False
        self.seconds: float | None = None
        """The duration in seconds, or None before the end."""
        self.waits = array("d")
        """Seconds from sending to the outcome, for each bundle that reached the authority."""
        self.indeterminate: Counter[Cause] = Counter()
        """The number of calls to the authority without a verdict, by cause."""
        self.kept_waiting = 0
        """The number of bundles with at least one such call."""
        self.course = Progress()
        self.thefts: dict[int, TheftReport] = {}
        self._cameras = cameras
        self._aggregators = aggregators
        self._report = report
        self._settle = settle
        self._begun = 0.0
        self._last_picture = 0.0  # loop time after which no picture is taken
        self._end = 0.0  # loop time after which all tasks are cancelled
        self._offline: dict[str, Picture] = {}  # by bundle id; the bundles wait in the cameras
        self._sources = plan.sources()
        self._bundles: dict[int, asyncio.Future[Bundle]] = {}  # of the sources, by picture number
        self._tasks: set[asyncio.Task[None]] = set()
        self._halt = asyncio.Event()
        self._fault: BaseException | None = None

    @property
    def under_way(self) -> int:
        """The number of pictures and theft reports that are not finished."""
        return len(self._tasks)

    @property
    def all_right(self) -> bool:
        """True if all pictures were taken, all outcomes are right, and all reports succeeded."""
        return not (
            self.tally.wrong
            or self.tally.lost
            or self.not_taken
            or self.stopped
            or any(each.failure for each in self.thefts.values())
        )

    def elapsed(self) -> float:
        """Return the seconds since the beginning."""
        return asyncio.get_running_loop().time() - self._begun

    def _last_verdict(self, now: float) -> float:
        """Return the loop time at which a validation that starts now gives up.

        This is never later than the end of the run.
        """
        planned = self._begun + self.plan.terms.seconds
        return min(self._end, max(planned, now) + self._settle)

    def halt(self) -> None:
        """Take no more pictures, and give the sent ones `settle` seconds for their outcomes."""
        self.stopped = True
        self._end = min(self._end, asyncio.get_running_loop().time() + self._settle)
        self._halt.set()

    async def run(self) -> None:
        """Play the plan to its end. Raises DeviceError if a camera fails."""
        loop = asyncio.get_running_loop()
        self._begun = loop.time()
        self._last_picture = self._begun + self.plan.terms.seconds + self._settle
        self._end = self._last_picture + self._settle
        for at, act in self._acts():
            if not await self._reaches(at):
                break
            act()
        # Also after a halt: cameras that are still offline send their waiting bundles now.
        for number in range(len(self._cameras)):
            self._reconnect(number)
        self.not_taken = len(self.plan.pictures) - self.taken.total()
        self._end = self._last_verdict(loop.time())
        while self._tasks:
            await asyncio.wait(self._tasks, timeout=_PAUSE)
            # Validations give up at _end themselves. This cancels tasks that still run 1 s later.
            if loop.time() > self._end + 1.0:
                for each in self._tasks:
                    each.cancel()
        self.seconds = self.elapsed()
        if self._fault is not None:
            raise self._fault

    def _acts(self) -> list[tuple[float, Callable[[], None]]]:
        """Return all actions of the plan with their times, sorted by time."""
        acts: list[tuple[float, Callable[[], None]]] = [
            (each.at, functools.partial(self._take, each)) for each in self.plan.pictures
        ]
        for camera in self.plan.cameras:
            if camera.offline is not None:
                back = functools.partial(self._reconnect, camera.number)
                acts.append((camera.offline[1], back))
            if camera.reported_at is not None:
                theft = functools.partial(self._begin_report, camera.number)
                acts.append((camera.reported_at, theft))
        return sorted(acts, key=lambda each: each[0])

    async def _reaches(self, at: float) -> bool:
        """Wait for a time of the plan and for a free task. Return false if the run ends before."""
        loop = asyncio.get_running_loop()
        while not self._halt.is_set() and loop.time() < self._last_picture:
            left = self._begun + at - loop.time()
            if left <= 0 and len(self._tasks) < _UNDER_WAY:
                self.late = max(self.late, -left)
                # Let the event loop run other tasks, even if this run is late.
                await asyncio.sleep(0)
                return True
            wait = left if left > 0 else _PAUSE / 10
            try:
                async with asyncio.timeout(min(wait, _PAUSE)):
                    await self._halt.wait()
            except TimeoutError:
                continue
        return False

    # --- pictures

    def _take(self, picture: Picture) -> None:
        self.taken[picture.case] += 1
        if picture.number in self._sources:
            # Before it is sent: a replay may be due before this picture has its outcome.
            self._bundles[picture.number] = asyncio.get_running_loop().create_future()
        if picture.source is not None:
            self._begin(self._replay(picture, self._bundles[picture.source]))
            return
        bundle = self._make(picture, None)
        camera = self._cameras[picture.camera]
        # Forgers and thieves have their own network connection.
        by_camera = picture.case in {Case.GENUINE, Case.FAST_CLOCK, Case.SLOW_CLOCK}
        if by_camera and self.plan.cameras[picture.camera].is_offline(picture.at):
            self._offline[bundle_id(bundle)] = picture
            camera.camera.queue.put(bundle)
            return
        self._begin(self._send(picture, bundle))

    def _make(self, picture: Picture, source: Bundle | None) -> Bundle:
        image = f"simulated picture {picture.number}".encode()
        return self._cameras[picture.camera].make(
            picture.case, hashlib.sha256(image).digest(), source
        )

    async def _replay(self, picture: Picture, source: "asyncio.Future[Bundle]") -> None:
        """Send a replay after its source picture has its outcomes.

        Without the outcome in time, the replay counts as UNDECIDED.
        """
        # A replay counts as sent while it waits, and also if its source never gets an outcome.
        self.sent += len(picture.to)
        left = self._end - asyncio.get_running_loop().time()
        # wait() does not cancel the future at a timeout. Other replays may wait for it, too.
        done, _ = await asyncio.wait([source], timeout=max(0.0, left))
        if not done:
            for number in picture.to:
                self._count(picture, picture.case, Judgement(Outcome.UNDECIDED), number)
            return
        self.sent -= len(picture.to)  # _send() counts it again
        await self._send(picture, self._make(picture, source.result()))

    def _reconnect(self, number: int) -> None:
        """Send the bundles that a camera has queued while it was offline."""
        waiting: list[Bundle] = []

        def take(bundle: Bundle) -> Delivery:
            waiting.append(bundle)
            return Delivery.TAKEN

        self._cameras[number].camera.queue.drain(take)
        for bundle in waiting:
            self._begin(self._send(self._offline.pop(bundle_id(bundle)), bundle))

    async def _send(self, picture: Picture, bundle: Bundle) -> None:
        self.sent += len(picture.to)
        text = bundle.to_json()
        await asyncio.gather(*(self._submit(picture, text, each) for each in picture.to))
        if picture.number in self._bundles:
            self._bundles[picture.number].set_result(bundle)

    async def _submit(self, picture: Picture, text: bytes, number: int) -> None:
        loop = asyncio.get_running_loop()
        sent = loop.time()
        unanswered: list[Cause] = []

        def note(cause: Cause) -> None:
            self.kept_waiting += not unanswered  # counts the bundle once
            self.indeterminate[cause] += 1
            unanswered.append(cause)

        try:
            judgement = await self._aggregators[number].take(
                text, until=self._last_verdict(sent), unanswered=note
            )
        except asyncio.CancelledError:
            last = f" ({unanswered[-1]} until then)" if unanswered else ""
            judgement = Judgement(Outcome.UNDECIDED, f"The run was over{last}.")
        except BirthmarkError as error:
            judgement = Judgement(Outcome.UNDECIDED, str(error))
        judged = loop.time()
        if judgement.asked:
            self.waits.append(judged - sent)
        # After the judgement: the report of a theft may begin while a bundle is on its way.
        theft = self.thefts.get(picture.camera)
        case = picture.case if theft is None else theft.case_of(picture.case, sent, judged)
        self._count(picture, case, judgement, number)

    def _count(self, picture: Picture, case: Case, judgement: Judgement, number: int) -> None:
        right = self.tally.count(
            case,
            judgement.ending,
            picture=picture.number,
            device_serial=self._cameras[picture.camera].device_serial,
            aggregator=number + 1,
            detail=judgement.detail,
        )
        part = min(BINS - 1, int(picture.at / self.plan.terms.seconds * BINS))
        passed = judgement.ending is Outcome.PASS
        course = self.course
        counts = (course.passed if passed else course.refused) if right else course.wrong
        counts[part] += 1

    # --- thefts

    def _begin_report(self, number: int) -> None:
        if self.plan.cameras[number].role is Role.STOLEN:
            theft = TheftReport(self._cameras[number].device_serial)
            theft.begun = asyncio.get_running_loop().time()
            self.thefts[number] = theft
            self._begin(self._report_theft(theft))

    async def _report_theft(self, theft: TheftReport) -> None:
        if self._report is None:
            for each in self._aggregators:
                each.reported.add(theft.device_serial)
        else:
            try:
                theft.failure = await self._report(theft.device_serial)
            except asyncio.CancelledError:
                theft.failure = "The command did not end before the run."
        if theft.failure is None:
            theft.ended = asyncio.get_running_loop().time()

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._fault = error
            self.halt()
