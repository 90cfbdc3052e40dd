"""Cameras, servers and commands that are killed while they renew, rotate and re-enrol.

Threats 8, 29 and 30. Points of a kill are lines of the camera's code, and steps of a process in the
database or in files. After each, the act is done again, and the camera that was there is unharmed
(`Survivor`). `make soak` kills more than 200 times on each database, and prints how many of each
kind left everything as before, and how many came after the act was carried out.
"""

import random
import signal
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest
from sqlalchemy import select

from birthmark_sma.authority.ca import store as ca_store
from birthmark_sma.authority.key_tables import epochs
from birthmark_sma.cli.exit_codes import CONFLICT
from birthmark_sma.storage.schema.devices import re_enrolments
from birthmark_sma.storage.schema.key_tables import earlier_table_keys
from tests.end_to_end.conftest import Start
from tests.support.cameras.survivor import Survivor
from tests.support.counting import assert_the_chains_at_verify
from tests.support.devices.acts import allow_re_enrolment
from tests.support.programs.commands import Background, sma
from tests.support.programs.kill_points import (
    count_statements,
    count_steps,
    die_before_statement,
    die_before_step,
)
from tests.support.programs.killed_server import KillableServer
from tests.support.soak import tell_table, times

KILLS_OF_EACH_KIND = times(1, 13)
ROUNDS_OF_A_KILL = 4
"""A process may come to its end before its point."""
IN_A_ROW = 0.3
"""The probability that a camera is killed again before it comes to its end."""
OPTIONS = ("--access", "open", "--rate-renew", "none", "--rate-provision", "none")


class Scene(KillableServer):
    """An authority with a server that dies when it is told, and the commands beside it."""

    def __init__(self, start_server: Start, folder: Path, chance: random.Random) -> None:
        super().__init__(start_server(*OPTIONS), folder / "orders", *OPTIONS)
        self.folder = folder
        self.chance = chance

    def sma(self, *words: str, code: int = 0) -> str:
        """Run a command that ends with this exit code; return what it says."""
        ran = sma(*words, environ=self.running.environ)
        assert ran.returncode == code, ran.stdout + ran.stderr
        return ran.stdout + ran.stderr

    def begin(self, *words: str, before: Callable[[], object]) -> Background:
        """Start a command that calls `before` first."""
        return Background(*words, environ=self.running.environ, before=[before])

    def table_epochs(self) -> list[tuple[int, int]]:
        """Return the epoch of each key table."""
        with self.running.database() as database, database.read() as connection:
            return [(each.table_id, each.epoch) for each in epochs.list_states(connection)]

    def open_overlaps(self) -> list[int]:
        """Return the tables of which an earlier key is accepted."""
        with self.running.database() as database, database.read() as connection:
            return list(connection.scalars(select(earlier_table_keys.c.table_id)))


# --- what is cut off


@dataclass(frozen=True)
class Act:
    """Something that a camera or a command does.

    `prepare` makes it possible, `look` returns what it changes, and `afterwards` comes before the
    camera's next life: its last argument is True if the act was carried out.
    """

    name: str
    look: Callable[[Scene, Survivor], object]
    prepare: Callable[[Scene, Survivor], object] = lambda _scene, _survivor: None
    command: tuple[str, ...] = ()
    afterwards: Callable[[Scene, Survivor, bool], object] = lambda _scene, _survivor, _done: None
    new_key: bool = True
    supersede: bool = True


def certificate(scene: Scene, survivor: Survivor) -> object:
    """Return the camera's certificate."""
    return survivor.certificate(scene.running)


def cas(scene: Scene, _: Survivor) -> object:
    """Return the names of all CAs."""
    with scene.running.database() as database, database.read() as connection:
        return [each.name for each in ca_store.list_cas(connection)]


def permission(scene: Scene, _: Survivor) -> object:
    """Return the permissions to re-enrol."""
    with scene.running.database() as database, database.read() as connection:
        return connection.execute(select(re_enrolments)).all()


def rotate_tables(scene: Scene, survivor: Survivor) -> None:
    """Give all tables new keys. Before, the camera has the keys that the register says it has."""
    scene.sma(*END_OVERLAPS)
    if survivor.is_unharmed:
        survivor.assert_pictures_pass(scene.running)
    scene.sma(*ROTATE_TABLES)


def rotate_tables_and_renew(scene: Scene, survivor: Survivor) -> None:
    """Give all tables new keys, and the camera too."""
    rotate_tables(scene, survivor)
    assert survivor.live(scene.running) == 0


def allow_and_reinstall(scene: Scene, survivor: Survivor) -> None:
    """Let the camera lose its key, with the operator's permission to be provisioned again."""
    with scene.running.database() as database:
        allow_re_enrolment(database, survivor.serial)
    survivor.reinstall(scene.running)


def repeat(*command: str) -> Callable[[Scene, Survivor, bool], object]:
    """Return the repetition of a command that does the same again."""
    return lambda scene, _survivor, _done: scene.sma(*command)


def repeat_rotation(scene: Scene, _: Survivor, done: bool) -> None:
    """Rotate the tables; if that is done already, the command says so."""
    said = scene.sma(*ROTATE_TABLES, code=CONFLICT if done else 0)
    assert not done or "rotated before" in said


def repeat_end(scene: Scene, _: Survivor, done: bool) -> None:
    """End the overlaps; afterwards none is open."""
    said = scene.sma(*END_OVERLAPS)
    assert ("No overlap is open" in said) == done
    assert scene.open_overlaps() == []


ROTATE_TABLES = ("tables", "rotate", "--all", "--yes")
END_OVERLAPS = ("tables", "end", "--all", "--yes")
ROTATE_CA = ("ca", "rotate", "--yes")
ROLL_ROOT = ("ca", "roll-root", "--yes")
SAME_KEY = Act("renewal with the same key", certificate, new_key=False, supersede=False)
RE_KEY = Act("re-key, supersede", certificate)
NEW_TABLE_KEYS = Act(
    "re-key between rotations",
    certificate,
    prepare=rotate_tables,
    # A repetition of what was cut off gets other table keys than the first request.
    afterwards=lambda scene, survivor, _: rotate_tables(scene, survivor),
)
RE_ENROLMENT = Act("re-enrolment", certificate, prepare=allow_and_reinstall)
OF_CAMERAS = (SAME_KEY, RE_KEY, NEW_TABLE_KEYS, RE_ENROLMENT)
NEW_INTERMEDIATE = Act("sma ca rotate", cas, command=ROTATE_CA, afterwards=repeat(*ROTATE_CA))
NEW_ROOT = Act("sma ca roll-root", cas, command=ROLL_ROOT, afterwards=repeat(*ROLL_ROOT))
NEW_TABLES = Act(
    "sma tables rotate",
    lambda scene, _: scene.table_epochs(),
    prepare=lambda scene, _: scene.sma(*END_OVERLAPS),
    command=ROTATE_TABLES,
    afterwards=repeat_rotation,
)
ENDED_OVERLAPS = Act(
    "sma tables end",
    lambda scene, _: scene.open_overlaps(),
    prepare=rotate_tables_and_renew,
    command=END_OVERLAPS,
    afterwards=repeat_end,
)
OF_OPERATORS = (NEW_INTERMEDIATE, NEW_ROOT, NEW_TABLES, ENDED_OVERLAPS)


# --- who is killed


class Attack:
    """Kills one process again and again while an act is under way. `points` were measured."""

    victim: str

    def __init__(self, scene: Scene, act: Act) -> None:
        self.scene = scene
        self.act = act
        self.survivor = Survivor(
            scene.running, scene.folder, new_key=act.new_key, supersede=act.supersede
        )
        act.prepare(scene, self.survivor)
        self.points = self.measure()

    def measure(self) -> str:
        """Do the act to its end, and return a description of the points at which to kill."""
        raise NotImplementedError

    def kill(self, part: float) -> bool:
        """Kill after this part of the act; return False if the process ended before."""
        raise NotImplementedError


class CameraKilled(Attack):
    """Before a line of the camera's own code."""

    victim = "camera"
    ours_alone = True

    def measure(self) -> str:
        assert self.survivor.live(self.scene.running, ours_alone=self.ours_alone) == 0
        self._lines = self.survivor.lines
        return f"{self._lines} lines"

    def kill(self, part: float) -> bool:
        last = 1 + int(part * self._lines)
        code = self.survivor.live(self.scene.running, last_line=last, ours_alone=self.ours_alone)
        assert code in {0, -signal.SIGKILL}
        return code == -signal.SIGKILL


class CameraKilledInHttp(CameraKilled):
    """Before a line of the camera's code or of its HTTP client."""

    victim = "camera, HTTP too"
    ours_alone = False


class ServerKilled(Attack):
    """Before a step of the server in the database, while the camera acts."""

    victim = "server"

    def measure(self) -> str:
        self.scene.tell_server(0)
        assert self.survivor.live(self.scene.running) == 0
        self._steps = self.scene.server_steps()
        self.scene.forget()
        return f"{self._steps} steps"

    def kill(self, part: float) -> bool:
        self.scene.tell_server(1 + int(part * self._steps))
        self.survivor.live(self.scene.running)  # a camera that is not provisioned yet gives up
        return self.scene.restart()


class CommandKilled(Attack):
    """Before a step of the command in the database, or on a file, beside a running server."""

    victim = "command"

    def measure(self) -> str:
        self._steps = self.count(count_statements)
        self._files = self.count(partial(count_steps, self.scene.data_dir))
        return f"{self._steps} steps, {self._files} of files"

    def count(self, count: Callable[[Path], None]) -> int:
        """Run the command to its end, and return the bytes that `count` has written."""
        marks = self.scene.folder / "marks"
        self.run(partial(count, marks), 0)
        self.act.prepare(self.scene, self.survivor)
        steps = marks.stat().st_size
        marks.unlink()
        return steps

    def run(self, before: Callable[[], None], *codes: int) -> int:
        """Run the command, which calls `before` first and ends with one of the exit codes."""
        command = self.scene.begin(*self.act.command, before=before)
        said = command.communicate()
        assert command.returncode in codes, said
        return command.returncode

    def kill(self, part: float) -> bool:
        point = 1 + int(part * (self._steps + self._files))
        if point <= self._steps:
            die = partial(die_before_statement, point)
        else:
            die = partial(die_before_step, self.scene.data_dir, point - self._steps)
        return self.run(die, 0, -signal.SIGKILL) == -signal.SIGKILL


class ServerKilledBesideCommand(CommandKilled):
    """Before a step of the command in the database. The command comes to its end all the same."""

    victim = "server beside it"

    def measure(self) -> str:
        self._steps = self.count(count_statements)
        return f"{self._steps} steps"

    def kill(self, part: float) -> bool:
        server = self.scene.running.server.process.pid
        self.run(partial(die_before_statement, 1 + int(part * self._steps), server), 0)
        return self.scene.restart()


ATTACKS = [
    *((CameraKilled, act) for act in OF_CAMERAS),
    (CameraKilledInHttp, RE_KEY),
    *((ServerKilled, act) for act in OF_CAMERAS),
    *((CommandKilled, act) for act in OF_OPERATORS),
    *((ServerKilledBesideCommand, act) for act in OF_OPERATORS),
]
KINDS = times(10, len(ATTACKS))
"""The number of attacks that are played. `make test` chooses anew each time."""


@dataclass
class Tally:
    """The kills of one kind, by what they left."""

    attack: Attack
    left: Counter[str] = field(default_factory=Counter)

    def row(self) -> tuple[object, ...]:
        """Return the cells of the table."""
        attack = self.attack
        before, done, late = (self.left[each] for each in ("as before", "carried out", "too late"))
        return attack.act.name, attack.victim, attack.points, before + done, before, done, late


def play(attack: Attack) -> Tally:
    """Kill until it was enough. After each time, or after several kills in a row, all is well."""
    scene, act, survivor = attack.scene, attack.act, attack.survivor
    tally = Tally(attack)
    kills = 0
    for _ in range(KILLS_OF_EACH_KIND * ROUNDS_OF_A_KILL):
        act.prepare(scene, survivor)
        before = act.look(scene, survivor)
        killed = attack.kill((kills + scene.chance.random()) / KILLS_OF_EACH_KIND)
        done = act.look(scene, survivor) != before
        act.afterwards(scene, survivor, done)
        kills += killed
        what = "carried out" if done else "as before"
        tally.left[what if killed else "too late"] += 1
        if kills == KILLS_OF_EACH_KIND:
            survivor.assert_unharmed(scene.running)
            return tally
        if not isinstance(attack, CameraKilled) or scene.chance.random() > IN_A_ROW:
            survivor.assert_unharmed(scene.running)
    raise AssertionError(f"{act.name}: only {kills} kills of the {attack.victim}")


@pytest.mark.soak
@pytest.mark.timeout(7_200)
def test_nothing_is_stranded_and_nothing_is_there_twice(
    start_server: Start, tmp_path: Path
) -> None:
    """Threats 8, 29 and 30: kill -9 of cameras, servers and commands."""
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")  # noqa: T201  pytest shows it where the test fails
    scene = Scene(start_server, tmp_path, random.Random(seed))
    tallies = []
    try:
        for number in sorted(scene.chance.sample(range(len(ATTACKS)), KINDS)):
            attack, act = ATTACKS[number]
            tallies.append(play(attack(scene, act)))
        assert_the_chains_at_verify(scene.running.database_url)
    finally:
        scene.close()
        tell_table(
            ("act", "killed", "points", "kills", "as before", "carried out", "too late"),
            [tally.row() for tally in tallies],
        )
