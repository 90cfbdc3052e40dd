"""`sma simulate camera` and `sma simulate aggregator`: simulate one side of the protocol.

A developer of the other side runs them to test against. `simulate/commands.py` registers both.
"""

import json
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from birthmark_sma.cli import exit_codes
from birthmark_sma.cli.options import Json
from birthmark_sma.cli.output import print_json, print_line, print_stderr
from birthmark_sma.cli.simulate.options import (
    CaFile,
    Directory,
    EnrolmentKeyFile,
    KeysPerTable,
    PictureFile,
    ReportFile,
    RootFingerprint,
    Settle,
    Url,
    ValidateKeyFile,
    check_empty,
    check_writable,
    make_target,
)
from birthmark_sma.cli.simulate.report import play, tell
from birthmark_sma.errors import ConfigurationError

if TYPE_CHECKING:
    from birthmark_sma.simulation.expected_outcomes import Case
    from birthmark_sma.simulation.fleet import PlayedCamera
    from birthmark_sma.simulation.plan import Plan
    from birthmark_sma.simulation.target import Site


def camera(
    url: Url,
    to: Annotated[
        str | None,
        typer.Option(
            help="POST the bundles to this URL of an aggregation server; else one is played too."
        ),
    ] = None,
    pictures: Annotated[int, typer.Option(min=1, max=100_000, help="How many.")] = 5,
    interval: Annotated[
        float, typer.Option(min=0, max=3600, help="Seconds from one to the next.")
    ] = 0.5,
    case: Annotated[
        list[str] | None,
        typer.Option(
            help="What is done with the pictures, in turn, such as tampered-tag; all is one of"
            " each. [genuine]"
        ),
    ] = None,
    family: Annotated[str, typer.Option(help="The camera's family.")] = "Simulated Camera",
    serial: Annotated[
        str | None, typer.Option(help="The camera's serial; a new one each time unless given.")
    ] = None,
    settle: Settle = 30.0,
    enrolment_key_file: EnrolmentKeyFile = None,
    validate_key_file: ValidateKeyFile = None,
    ca_file: CaFile = None,
    root_fingerprint: RootFingerprint = None,
    keys_per_table: KeysPerTable = None,
    directory: Directory = None,
    report: ReportFile = None,
    picture: PictureFile = None,
    as_json: Json = False,
) -> None:
    """Play one camera: provisioned like any other, it takes pictures and sends their bundles.

    With --to it exits with 0 if each bundle was answered as it should be: by its status, and by the
    ending where the answer names one. Without, it exits as `sma simulate fleet` does.
    """
    from birthmark_sma.simulation.run import RunOptions, new_serial_prefix

    site = make_target(
        url,
        aggregators=1,
        ca_file=ca_file,
        enrolment_key_file=enrolment_key_file,
        validate_key_file=validate_key_file,
        root_fingerprint=root_fingerprint,
        keys_per_table=keys_per_table,
    )
    check_writable(report, picture)
    check_empty(directory)
    plan = _plan_of_one(_cases(case or ["genuine"]), pictures, interval, family)
    manner = RunOptions(
        serial or new_serial_prefix(), settle, directory, is_serial=serial is not None
    )
    if to is None:
        tell(play(plan, site, manner), report, picture, as_json=as_json)
        return
    if report is not None or picture is not None:
        raise ConfigurationError("With --to there is no report: what is answered is printed.")
    from birthmark_sma.simulation.run import one_camera

    with one_camera(plan, site, manner) as played:
        _deliver_all(played, plan, to, site, as_json=as_json)


def _cases(names: Sequence[str]) -> "list[Case]":
    from birthmark_sma.simulation.expected_outcomes import BY_ONE_CAMERA

    known = {each.name.lower().replace("_", "-"): each for each in BY_ONE_CAMERA}
    if list(names) == ["all"]:
        return list(BY_ONE_CAMERA)
    for each in names:
        if each not in known:
            raise ConfigurationError(f"--case is all, or one of: {', '.join(known)}.")
    return [known[each] for each in names]


def _plan_of_one(cases: "Sequence[Case]", pictures: int, interval: float, family: str) -> "Plan":
    from birthmark_sma.simulation.camera_families import families_by_name
    from birthmark_sma.simulation.plan import Terms, plan_of_one

    # At least 1 ms for each picture: an interval of 0 must not divide by zero below.
    seconds = max(interval * pictures, 0.001 * pictures)
    terms = Terms(
        cameras=1,
        seconds=seconds,
        rate=pictures / seconds,
        families=families_by_name([family]),
        aggregators=1,
        day=False,
        tampering=0,
        clones=0,
        replays=0,
        stolen=0,
        wrong_clocks=0,
        offline=0,
    )
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
            lines.append(
                {
                    "case": each.case,
                    "right": sorted(right),
                    "status": answer.status,
                    "ending": answer.ending,
                    "detail": answer.detail,
                    "fault": fault,
                }
            )
            if not as_json:
                mark = typer.style("✗", fg="red") if fault else typer.style("✓", fg="green")
                told = [answer.ending, fault] if answer.status else [fault]
                shown = ": ".join(each for each in told if each) or "it does not say how it ended"
                print_line(f"{mark} {each.case:<24} {answer.status or '---'}  {shown}")
    if as_json:
        print_json({"device_serial": played.device_serial, "bundles": lines})
    if bad:
        print_stderr(f"{bad} of {len(plan.pictures)} bundles were not answered as they should be.")
        raise typer.Exit(exit_codes.FAILED)


def aggregator(
    url: Url,
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 is any free one.")] = 8010,
    duration: Annotated[
        float, typer.Option(min=0, max=86_400, help="End after so many seconds.")
    ] = 3600.0,
    count: Annotated[
        int, typer.Option(min=1, max=1_000_000, help="End after so many bundles.")
    ] = 100_000,
    validate_key_file: ValidateKeyFile = None,
    ca_file: CaFile = None,
    root_fingerprint: RootFingerprint = None,
    as_json: Json = False,
) -> None:
    """Play an aggregation server: takes bundles at POST /bundles, and says what became of each.

    It trusts the root that the authority shows, so pin that with --root-fingerprint. Ctrl-C ends
    it.
    """
    import asyncio
    from contextlib import suppress

    from birthmark_sma.simulation.aggregation.aggregation_server import Judgement
    from birthmark_sma.simulation.aggregation.hosting import Bounds, host_aggregator

    site = make_target(
        url,
        aggregators=1,
        ca_file=ca_file,
        validate_key_file=validate_key_file,
        root_fingerprint=root_fingerprint,
    )

    def ready(address: str) -> None:
        if as_json:
            print_json({"url": address})
        else:
            print_line(f"Bundles are taken at {address}/bundles; Ctrl-C ends it.")

    def told(judgement: Judgement) -> None:
        about = judgement.device_serial or judgement.detail
        if as_json:
            print_line(json.dumps({"ending": judgement.ending, "about": about}))
        else:
            print_line(f"{time.strftime('%H:%M:%S')}  {judgement.ending:<18} {about}".rstrip())

    with suppress(KeyboardInterrupt):
        bounds = Bounds(duration, count)
        asyncio.run(host_aggregator(site, host, port, bounds, ready=ready, told=told))
