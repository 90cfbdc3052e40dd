"""Play a plan: take each picture at its time, send it, and judge what comes back.

Bounded in time: `settle` seconds after the plan's end no picture is taken any more, and as long
again after that everything is cut off: what has no verdict then is lost. Bounded in memory: so many
bundles are under way at once at most. A machine that is too slow takes pictures late, and the
report says by how much.
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
"""Into so many parts a run is cut to show how it went."""
_UNDER_WAY = 5_000
_PAUSE = 0.2

Report = Callable[[str], Coroutine[Any, Any, str | None]]


@dataclass(slots=True)
class TheftReport:
    """The report of a stolen camera. Times are the event loop's."""

    device_serial: str
    begun: float | None = None
    ended: float | None = None
    failure: str | None = None

    def case_of(self, planned: Case, sent: float, judged: float) -> Case:
        """Say what a picture of this camera was by the time that it was judged."""
        if self.begun is None or judged <= self.begun:
            return planned
        if self.ended is not None and sent >= self.ended:
            return Case.REPORTED
        return Case.BEING_REPORTED


@dataclass(slots=True)
class Progress:
    """How a run went in one of its parts: bundles that passed, were turned away, or wrong."""

    passed: list[int] = field(default_factory=lambda: [0] * BINS)
    refused: list[int] = field(default_factory=lambda: [0] * BINS)
    wrong: list[int] = field(default_factory=lambda: [0] * BINS)


class Play:
    """One run. Its attributes may be read while it goes on."""

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
        """How long it took, once it is over."""
        self.waits = array("d")
        """Seconds from sending to an ending, for each bundle that was asked about."""
        self.indeterminate: Counter[Cause] = Counter()
        """How often the authority was asked and gave no verdict, by why."""
        self.kept_waiting = 0
        """How many bundles that happened to."""
        self.course = Progress()
        self.thefts: dict[int, TheftReport] = {}
        self._cameras = cameras
        self._aggregators = aggregators
        self._report = report
        self._settle = settle
        self._begun = 0.0
        self._last_picture = 0.0
        self._end = 0.0
        self._offline: dict[str, Picture] = {}
        self._sources = plan.sources()
        self._bundles: dict[int, asyncio.Future[Bundle]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._halt = asyncio.Event()
        self._fault: BaseException | None = None

    @property
    def under_way(self) -> int:
        """How many pictures and reports have no ending yet."""
        return len(self._tasks)

    @property
    def all_right(self) -> bool:
        """Whether every picture was taken and ended as it should, and every report went through."""
        return not (
            self.tally.wrong
            or self.tally.lost
            or self.not_taken
            or self.stopped
            or any(each.failure for each in self.thefts.values())
        )

    def elapsed(self) -> float:
        """How many seconds have gone by since the beginning."""
        return asyncio.get_running_loop().time() - self._begun

    def _last_verdict(self, now: float) -> float:
        """When those who ask for a verdict now give up: no later than the whole run ends."""
        planned = self._begun + self.plan.terms.seconds
        return min(self._end, max(planned, now) + self._settle)

    def halt(self) -> None:
        """Take no more pictures; let those that are under way come to their endings."""
        self.stopped = True
        self._end = min(self._end, asyncio.get_running_loop().time() + self._settle)
        self._halt.set()

    async def run(self) -> None:
        """Play it all. Raises DeviceError where a camera cannot go on."""
        loop = asyncio.get_running_loop()
        self._begun = loop.time()
        self._last_picture = self._begun + self.plan.terms.seconds + self._settle
        self._end = self._last_picture + self._settle
        for at, act in self._acts():
            if not await self._reaches(at):
                break
            act()
        for number in range(len(self._cameras)):
            self._reconnect(number)
        self.not_taken = len(self.plan.pictures) - self.taken.total()
        self._end = self._last_verdict(loop.time())
        while self._tasks:
            await asyncio.wait(self._tasks, timeout=_PAUSE)
            if loop.time() > self._end + 1.0:
                for each in self._tasks:
                    each.cancel()
        self.seconds = self.elapsed()
        if self._fault is not None:
            raise self._fault

    def _acts(self) -> list[tuple[float, Callable[[], None]]]:
        """Return everything that happens, in order."""
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
        """Wait for a moment of the plan; False where it does not come in this run."""
        loop = asyncio.get_running_loop()
        while not self._halt.is_set() and loop.time() < self._last_picture:
            left = self._begun + at - loop.time()
            if left <= 0 and len(self._tasks) < _UNDER_WAY:
                self.late = max(self.late, -left)
                # The loop's other work has its turn, however late everything is.
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
            self._bundles[picture.number] = asyncio.get_running_loop().create_future()
        if picture.source is not None:
            self._begin(self._replay(picture, self._bundles[picture.source]))
            return
        bundle = self._make(picture, None)
        camera = self._cameras[picture.camera]
        # Whoever forges has a network of his own.
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
        """Send what begins with an earlier picture, once that one has come to its ending."""
        self.sent += len(picture.to)
        left = self._end - asyncio.get_running_loop().time()
        done, _ = await asyncio.wait([source], timeout=max(0.0, left))
        if not done:
            for number in picture.to:
                self._count(picture, picture.case, Judgement(Outcome.UNDECIDED), number)
            return
        self.sent -= len(picture.to)
        await self._send(picture, self._make(picture, source.result()))

    def _reconnect(self, number: int) -> None:
        """Have a camera send what waited while it had no network."""
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
            self.kept_waiting += not unanswered
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
