"""`sma simulate camera` and `sma simulate aggregator`: simulate one side of the protocol.

A developer of the other side runs them to test against. `simulate/commands.py` registers both.
"""

import json
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Option

from birthmark_sma.cli import exit_codes
from birthmark_sma.cli.options import Json
from birthmark_sma.cli.output import print_json, print_line, print_stderr
from birthmark_sma.cli.simulate.options import RunOptions, TargetOptions
from birthmark_sma.cli.simulate.report import play, print_outcome
from birthmark_sma.counts import counted
from birthmark_sma.errors import ConfigurationError

if TYPE_CHECKING:
    from birthmark_sma.simulation.expected_outcomes import Case
    from birthmark_sma.simulation.fleet import PlayedCamera
    from birthmark_sma.simulation.plan import Plan
    from birthmark_sma.simulation.target import Site


def camera(
    run: RunOptions,
    to: Annotated[
        str | None,
        Option(
            help="Send the bundles to this URL of an aggregation server. Default: an aggregation"
            " server is simulated too."
        ),
    ] = None,
    pictures: Annotated[int, Option(min=1, max=100_000, help="The number of pictures.")] = 5,
    interval: Annotated[
        float, Option(min=0, max=3600, help="The seconds from one picture to the next.")
    ] = 0.5,
    case: Annotated[
        list[str] | None,
        Option(
            help="The case that the next picture plays, such as tampered-tag. It can be repeated,"
            " and all plays each case once. [genuine]"
        ),
    ] = None,
    family: Annotated[str, Option(help="The camera's family.")] = "Simulated Camera",
    serial: Annotated[str | None, Option(help="The camera's serial. Default: a new one.")] = None,
    as_json: Json = False,
) -> None:
    """Simulate one camera, which is provisioned, takes pictures and sends their bundles.

    With --to, the exit code is 0 if each bundle got the right HTTP status and, if the response
    names one, the right ending. Without --to, it is that of `sma simulate fleet`.
    """
    from birthmark_sma.simulation import run as simulation

    site = run.site(1)
    plan = _plan_of_one(_cases(case or ["genuine"]), pictures, interval, family)
    prefix, is_serial = serial or simulation.new_serial_prefix(), serial is not None
    options = simulation.RunOptions(prefix, run.settle, run.directory, is_serial=is_serial)
    if to is None:
        print_outcome(play(plan, site, options), run, as_json=as_json)
        return
    if run.report is not None or run.picture is not None:
        raise ConfigurationError(
            "With --to there is no report, because the responses are printed. Leave out --report"
            " and --picture."
        )
    with simulation.one_camera(plan, site, options) as played:
        _deliver_all(played, plan, to, site, as_json=as_json)


def _cases(names: Sequence[str]) -> "list[Case]":
    from birthmark_sma.simulation.expected_outcomes import BY_ONE_CAMERA

    known = {each.name.lower().replace("_", "-"): each for each in BY_ONE_CAMERA}
    if list(names) == ["all"]:
        return list(BY_ONE_CAMERA)
    for each in names:
        if each not in known:
            raise ConfigurationError(
                f"{each} is not a case. Choose all, or one of: {', '.join(known)}."
            )
    return [known[each] for each in names]


def _plan_of_one(cases: "Sequence[Case]", pictures: int, interval: float, family: str) -> "Plan":
    from birthmark_sma.simulation.camera_families import families_by_name
    from birthmark_sma.simulation.plan import Terms, plan_of_one

    # At least 1 ms for each picture: an interval of 0 must not divide by zero below.
    seconds = max(interval * pictures, 0.001 * pictures)
    nothing_else: dict[str, Any] = dict.fromkeys(
        ("tampering", "clones", "replays", "stolen", "wrong_clocks", "offline"), 0.0
    )
    families = families_by_name([family])
    rate = pictures / seconds
    terms = Terms(1, seconds, rate, families=families, aggregators=1, day=False, **nothing_else)
    return plan_of_one(terms, cases)


def _deliver_all(
    played: "PlayedCamera", plan: "Plan", to: str, site: "Site", *, as_json: bool
) -> None:
    import httpx2

    from birthmark_sma.client.transport import tls_context
    from birthmark_sma.simulation.aggregation.bundle_upload import SECONDS, deliver, fault_in
    from birthmark_sma.simulation.expected_outcomes import ASSUMED, Case, right_endings

    context = tls_context(site.ca_file, None)
    verify = True if context is None else context
    bad, previous, lines = 0, None, []
    begun = time.monotonic()
    with httpx2.Client(verify=verify, trust_env=False, timeout=SECONDS) as client:
        for each in plan.pictures:
            # Sleep until the planned time, so that a slow response does not delay all later ones.
            time.sleep(max(0.0, begun + each.at - time.monotonic()))
            image = f"simulated picture {each.number}".encode()
            bundle = played.make(each.case, image, previous if each.source is not None else None)
            answer = deliver(client, to, bundle)
            if each.case is Case.GENUINE:
                previous = bundle  # a replay case sends this one, or its token, again
            right = right_endings(each.case, ASSUMED)
            fault = fault_in(answer, right)
            bad += fault is not None
            got = {name: getattr(answer, name) for name in ("status", "ending", "detail")}
            lines.append({"case": each.case, "right": sorted(right), **got, "fault": fault})
            if not as_json:
                mark = typer.style("✗", fg="red") if fault else typer.style("✓", fg="green")
                texts = [answer.ending, fault] if answer.status else [fault]
                shown = ": ".join(each for each in texts if each) or "the response names no ending"
                print_line(f"{mark} {each.case:<24} {answer.status or '---'}  {shown}")
    if as_json:
        print_json({"device_serial": played.device_serial, "bundles": lines})
    if bad:
        print_stderr(f"{bad} of {counted(len(plan.pictures), 'bundle')} got a wrong response.")
        raise typer.Exit(exit_codes.FAILED)


def aggregator(
    target: TargetOptions,
    host: Annotated[str, Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, Option(min=0, max=65535, help="The port to listen on; 0 takes a free one.")
    ] = 8010,
    duration: Annotated[
        float, Option(min=0, max=86_400, help="Stop after this number of seconds.")
    ] = 3600.0,
    count: Annotated[
        int, Option(min=1, max=1_000_000, help="Stop after this number of bundles.")
    ] = 100_000,
    as_json: Json = False,
) -> None:
    """Simulate an aggregation server: receive bundles at POST /bundles, and print their endings.

    It trusts the root certificate that the authority serves, so pin it with --root-fingerprint. To
    stop it, press Ctrl-C.
    """
    import asyncio
    from contextlib import suppress

    from birthmark_sma.simulation.aggregation.aggregation_server import Judgement
    from birthmark_sma.simulation.aggregation.hosting import Bounds, host_aggregator

    site = target.site(1)

    def print_ready(address: str) -> None:
        if as_json:
            print_json({"url": address})
        else:
            print_line(f"Send bundles to {address}/bundles. To stop: Ctrl-C.")

    def print_judgement(judgement: Judgement) -> None:
        about = judgement.device_serial or judgement.detail
        if as_json:
            print_line(json.dumps({"ending": judgement.ending, "about": about}))
        else:
            print_line(f"{time.strftime('%H:%M:%S')}  {judgement.ending:<18} {about}".rstrip())

    with suppress(KeyboardInterrupt):
        bounds = Bounds(duration, count)
        asyncio.run(
            host_aggregator(site, host, port, bounds, ready=print_ready, told=print_judgement)
        )
