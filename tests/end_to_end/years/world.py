"""The years of a fleet: authority, operator, cameras and an aggregation server under one clock.

    python -m tests.end_to_end.years.world FOLDER DATABASE_URL CAMERAS YEARS STEP_DAYS SEED

`test_years` starts this program under libfaketime, so that all its processes have one clock. It
prints a report as JSON, and on stderr the events. It fails at the first picture that does not pass,
and at the first step in which `sma doctor` is not content.

**Content** means that `sma doctor` exits with 0, so it has no warning, and names no command for a
CA. What it says about audit checkpoints is left out: servers sign each minute, and here days pass
within seconds. The one exception is the step in which the operator acts. There each warning names
`sma ca rotate` or `sma ca roll-root`, and nothing else may be wrong. The operator follows notes,
too: the doctor notes that an intermediate has two years left, and docs/operate/certificates.md says
to rotate then. The operator types the first command that is named and asks again, at most three
times, until the doctor is content. The clock stands meanwhile.
"""

import json
import random
import re
import sys
import time
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime, timedelta
from multiprocessing.connection import Pipe
from pathlib import Path

from tests.end_to_end.years.aggregation import Aggregation
from tests.end_to_end.years.cameras import TAKEN, Cameras, live
from tests.support.http.ports import free_port
from tests.support.programs.commands import sma
from tests.support.programs.faketime import FakeClock
from tests.support.programs.fork_server import FORKING
from tests.support.programs.running import Running, start

_DAY = timedelta(days=1)
_IN_A_PROCESS = 10
_KEYS = 50
_STOP_SECONDS = 30
_ACT = re.compile(r"Type (sma ca (?:rotate|roll-root))\b")
_HOURS = 2
"""The hours after a leap of the clock, in which restarted cameras renew, and failed ones again."""
_RESTARTS = 0.12
"""The chance of a process to be restarted in a step of a week. Half of the restarts are kills."""


@dataclass
class Report:
    """The numbers of a run."""

    seed: int
    steps: int = 0
    doctor_runs: int = 0
    acts: list[str] = field(default_factory=list)
    """The commands that the operator typed, each with its day."""
    restarts: dict[str, int] = field(default_factory=dict)
    captured: int = 0
    """The pictures that cameras took. All were in queues before the first was sent."""
    pictures: int = 0
    """The pictures that passed."""
    pictures_by_issuer: dict[str, int] = field(default_factory=dict)
    renewals: int = 0
    fewest_renewals: int = 0
    """The renewals of the camera that renewed least."""


class Fleet:
    """The cameras of one process, which may be killed and started again."""

    def __init__(self, cameras: Cameras, aggregation: Aggregation) -> None:
        self.cameras = cameras
        self._aggregation = aggregation
        self.certificates: dict[str, set[int]] = {each: set() for each in cameras.serials}
        """The serial numbers of the certificates that each camera had."""
        self._start()

    def send(self, command: str) -> None:
        """Send a command of `cameras.live` and do not wait."""
        self._pipe.send(command)

    def ask(self, command: str, *, bundles: int | None = None) -> bool:
        """Send a command and wait until it is done. Kill the process at the n-th bundle if given.

        Return False if the process was killed.
        """
        self.send(command)
        return self._hear(bundles)

    def restart(self, *, kill: bool) -> None:
        """End the process, by SIGKILL or in order, and start it again with the present pins."""
        self.cameras = replace(self.cameras, root_fingerprints=self._aggregation.fingerprints)
        self.close(kill=kill)
        self._start()

    def close(self, *, kill: bool = False) -> None:
        """End the process."""
        if kill:
            self._process.kill()
        self._pipe.close()
        self._process.join(_STOP_SECONDS)
        assert self._process.exitcode is not None, "the cameras do not stop"
        assert kill or self._process.exitcode == 0

    def _start(self) -> None:
        self._pipe, theirs = Pipe()
        self._process = FORKING.Process(target=live, args=(theirs, self.cameras), daemon=True)
        self._process.start()
        theirs.close()
        self._hear(None)

    def _hear(self, bundles: int | None) -> bool:
        while True:
            message = self._pipe.recv()
            if isinstance(message, dict):
                for serial, certificate in message.items():
                    self.certificates[serial].add(certificate)
                return True
            self._aggregation.take(message)
            if bundles is not None:
                bundles -= 1
                if bundles <= 0:
                    return False
            self._pipe.send(TAKEN)


class World:
    """Everything that lives under the clock."""

    def __init__(
        self, folder: Path, database_url: str, cameras: int, step_days: int, seed: int
    ) -> None:
        """Start the authority, and provision the cameras."""
        self._chance = random.Random(seed)
        self._clock = FakeClock(folder.parent / "clock")
        self._began = datetime.now(UTC)
        self._step_days = step_days
        self._data, self._database_url = folder / "data", database_url
        self.report = Report(seed)
        port = free_port()
        self._settings = {
            "SMA_TABLES": "20",
            "SMA_KEYS_PER_TABLE": str(_KEYS),
            "SMA_PUBLIC_URL": f"http://127.0.0.1:{port}",
        }
        self._port = str(port)
        self._authority = self._serve()
        self._aggregation = Aggregation(self._authority.server.url, folder)
        self._fleets = [
            self._fleet(folder, range(first, min(first + _IN_A_PROCESS, cameras)))
            for first in range(0, cameras, _IN_A_PROCESS)
        ]
        self._to_update: list[Fleet] = []
        """Processes whose app still pins the root before."""

    @property
    def day(self) -> int:
        """The days since the beginning."""
        return (datetime.now(UTC) - self._began).days

    def run(self, years: int) -> Report:
        """Live for some years, and return the numbers."""
        while self.day < years * 365.25:
            self._step()
        seen = [each for fleet in self._fleets for each in fleet.certificates.values()]
        report = self.report
        report.pictures = self._aggregation.pictures
        report.pictures_by_issuer = self._aggregation.issuers
        report.renewals = sum(len(each) - 1 for each in seen)
        report.fewest_renewals = min(len(each) - 1 for each in seen)
        return report

    def close(self) -> None:
        """End all processes."""
        for fleet in self._fleets:
            fleet.close(kill=True)
        self._authority.server.close()

    def _step(self) -> None:
        chance = self._chance
        self._clock.advance(chance.uniform(0.75, 1.25) * self._step_days * _DAY)
        self.report.steps += 1
        for fleet in self._fleets:
            fleet.send("tick")
        if self._happens():  # while the cameras ask for their windows, or renew
            time.sleep(chance.uniform(0, 0.3))
            self._restart_authority()
        if self._to_update:
            self._restart(self._to_update.pop())
        for fleet in self._fleets:
            if self._happens():
                self._restart(fleet)
        for _ in range(_HOURS):
            self._clock.advance(timedelta(hours=1))
            for fleet in self._fleets:
                fleet.ask("settle")
        for fleet in self._fleets:
            bundles = chance.randint(1, len(fleet.cameras.serials)) if self._happens() else None
            self.report.captured += len(fleet.cameras.serials)
            if not fleet.ask("picture", bundles=bundles):
                self._note("cameras killed while they sent")
                fleet.restart(kill=True)
                self.report.captured += len(fleet.cameras.serials)
                fleet.ask("picture")
        self._aggregation.validate()
        self._consult_doctor()
        self._follow_roots()

    def _follow_roots(self) -> None:
        """Let the aggregation server trust new roots, and the app pin them in an update."""
        before = set(self._aggregation.fingerprints)
        self._aggregation.follow_roots()
        if set(self._aggregation.fingerprints) - before:
            self._to_update = [*self._fleets]

    def _happens(self) -> bool:
        return self._chance.random() < min(0.5, _RESTARTS * self._step_days / 7)

    def _restart(self, fleet: Fleet) -> None:
        kill = self._chance.random() < 0.5
        self._note("cameras killed" if kill else "cameras stopped")
        fleet.restart(kill=kill)

    def _restart_authority(self) -> None:
        if self._chance.random() < 0.5:
            self._note("authority killed")
            self._authority.server.kill()
        else:
            self._note("authority stopped")
            # 1 if work was left after 8.5 seconds, as on a very busy machine. Nothing is lost then.
            assert self._authority.server.terminate() in {0, 1}
        self._authority.server.close()
        self._authority = self._serve()

    def _serve(self) -> Running:
        return start(self._data, self._database_url, "--port", self._port, **self._settings)

    def _fleet(self, folder: Path, numbers: range) -> Fleet:
        serials = tuple(f"camera-{number:03}" for number in numbers)
        url = self._authority.server.url
        pins = self._aggregation.fingerprints
        return Fleet(Cameras(folder / "cameras", url, serials, pins, _KEYS), self._aggregation)

    def _note(self, event: str) -> None:
        self.report.restarts[event] = self.report.restarts.get(event, 0) + 1
        tell(f"day {self.day}: {event}")

    # --- the operator

    def _consult_doctor(self) -> None:
        """Type what the doctor names for a CA, until it names nothing. Then it is content."""
        for _ in range(3):
            findings = self._examine()
            acts = [act for each in findings if (act := _ACT.match(each["remedy"] or ""))]
            bad = [each for each in findings if each["state"] in {"warning", "critical"}]
            assert all(_ACT.match(each["remedy"] or "") for each in bad), bad
            if not acts:
                return
            self._act(acts[0][1])
        raise AssertionError(f"the doctor is not content: {self._examine()}")

    def _examine(self) -> list[dict[str, str]]:
        """Return the findings of `sma doctor`, whose exit code must agree with them."""
        ran = sma("doctor", "--json", environ=self._authority.environ | self._settings)
        self.report.doctor_runs += 1
        findings: list[dict[str, str]] = json.loads(ran.stdout)["findings"]
        is_bad = any(each["state"] in {"warning", "critical"} for each in findings)
        assert (ran.returncode != 0) == is_bad, ran
        return [each for each in findings if each["name"] != "audit checkpoints"]

    def _act(self, command: str) -> None:
        self.report.acts.append(f"day {self.day}: {command}")
        tell(self.report.acts[-1])
        ran = sma(*command.split()[1:], "--yes", environ=self._authority.environ | self._settings)
        assert ran.returncode == 0, ran.stderr


def tell(line: str) -> None:
    """Print an event."""
    print(line, file=sys.stderr, flush=True)  # noqa: T201  the events of this program


def main() -> None:
    """Live the years that the command line describes, and print the report as JSON."""
    folder, database_url, *numbers = sys.argv[1:]
    cameras, years, step_days, seed = map(int, numbers)
    with closing(World(Path(folder), database_url, cameras, step_days, seed)) as world:
        print(json.dumps(asdict(world.run(years))))  # noqa: T201  the result of this program


if __name__ == "__main__":
    main()
