"""Carry out a whole run: provision the cameras, probe the authority's policies, play the plan.

`cli.simulate` calls `simulate`, or `one_camera` if it sends the bundles of one camera itself.
"""

import asyncio
import contextlib
import secrets
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, AsyncExitStack, ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cryptography import x509

from birthmark_sma.simulation.aggregation.aggregation_server import Aggregator
from birthmark_sma.simulation.fleet import PlayedCamera, make_clock, memory_directory, provision
from birthmark_sma.simulation.plan import Plan
from birthmark_sma.simulation.player import Play
from birthmark_sma.simulation.report import RunMetadata, make_report
from birthmark_sma.simulation.results import Tally
from birthmark_sma.simulation.target import Site, probe

Provisioned = Callable[[int, int | None], None]
"""Called with the number of provisioned cameras and their total number."""
Watch = Callable[[Play], AbstractContextManager[object]]
"""Called with a run before it begins. Returns a context manager that shows its progress."""


@dataclass(frozen=True, slots=True)
class RunOptions:
    """Options of a run that are not part of its plan.

    `settle` is the number of seconds for the last verdicts. `directory` contains the state of the
    cameras; None means a directory in memory that is deleted at the end. With `is_serial` the
    prefix is the whole serial of the only camera.
    """

    serial_prefix: str
    settle: float = 30.0
    directory: Path | None = None
    is_serial: bool = False

    def device_serial(self, number: int) -> str:
        """Return the serial of a camera of the plan."""
        return self.serial_prefix if self.is_serial else f"{self.serial_prefix}-{number:05}"


def new_serial_prefix() -> str:
    """Return a random prefix for serials, because each serial can be provisioned only once."""
    return f"sim-{secrets.token_hex(4)}"


def simulate(
    plan: Plan,
    site: Site,
    manner: RunOptions,
    *,
    provisioning: AbstractContextManager[Provisioned],
    watch: Watch,
) -> dict[str, Any]:
    """Carry out a plan against a real authority and return the report.

    `provisioning` is entered while cameras are provisioned. It yields the function that is called
    after each camera. Raises ConfigurationError if `probe` finds that no run can succeed, and the
    errors of `start_camera`.
    """
    with ExitStack() as stack:
        place = manner.directory or stack.enter_context(memory_directory())
        before, now = time.monotonic(), datetime.now(UTC)
        # Before the event loop starts: provisioning uses blocking calls.
        with provisioning as provisioned:
            cameras = _provision(plan, site, manner, place, provisioned)
        for each in cameras:
            stack.callback(each.close)
        circumstances = RunMetadata(site.url, manner.serial_prefix, now, time.monotonic() - before)
        return asyncio.run(
            _play(plan, site, cameras, circumstances, settle=manner.settle, watch=watch)
        )


@contextmanager
def one_camera(plan: Plan, site: Site, manner: RunOptions) -> Iterator[PlayedCamera]:
    """Yield the plan's only camera after its provisioning, and close it at the end.

    The caller sends its bundles.
    """
    with ExitStack() as stack:
        place = manner.directory or stack.enter_context(memory_directory())
        [played] = _provision(plan, site, manner, place, lambda _done, _total: None)
        stack.callback(played.close)
        yield played


def _provision(
    plan: Plan, site: Site, manner: RunOptions, place: Path, provisioned: Provisioned
) -> list[PlayedCamera]:
    made = 0

    def one_more() -> None:
        nonlocal made
        made += 1
        provisioned(made, len(plan.cameras))

    provisioned(0, len(plan.cameras))
    with site.http_client() as client:
        site.check_connection(client)
        return provision(
            [site.enrolment(manner.device_serial(e.number), e.family) for e in plan.cameras],
            [make_clock(each.clock, each.drift) for each in plan.cameras],
            place,
            max_bundles=len(plan.pictures) + 1,
            client=client,
            done=one_more,
        )


async def _play(
    plan: Plan,
    site: Site,
    cameras: list[PlayedCamera],
    circumstances: RunMetadata,
    *,
    settle: float,
    watch: Watch,
) -> dict[str, Any]:
    root = x509.load_pem_x509_certificate(cameras[0].root_pem.encode())
    async with AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(site.aggregator_client(number))
            for number in range(plan.terms.aggregators)
        ]
        # A genuine token that belongs to no picture of the plan.
        token = cameras[0].camera.capture(b"before the run").content.camera_token
        reports = bool(site.report_command)
        surroundings = await probe(clients, token, reports=reports)
        play = Play(
            plan,
            cameras,
            [Aggregator(client, root) for client in clients],
            Tally(surroundings),
            report=site.report if reports else None,
            settle=settle,
        )
        with _halted_by_signal(play), watch(play):
            await play.run()
        return make_report(play, circumstances)


@contextmanager
def _halted_by_signal(play: Play) -> Iterator[None]:
    """Make the first Ctrl-C halt the run in an orderly way, and the second one abort it."""
    loop = asyncio.get_running_loop()

    def halt() -> None:
        play.halt()
        # Without our handler, the next Ctrl-C raises KeyboardInterrupt.
        loop.remove_signal_handler(signal.SIGINT)

    # Signal handlers exist in the main thread only; other threads raise RuntimeError.
    with contextlib.suppress(NotImplementedError, RuntimeError):
        loop.add_signal_handler(signal.SIGINT, halt)
    try:
        yield
    finally:
        with contextlib.suppress(NotImplementedError, RuntimeError):
            loop.remove_signal_handler(signal.SIGINT)
