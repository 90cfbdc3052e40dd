"""`sma simulate`: the command `fleet`, and registration of `camera` and `aggregator`.

The simulation itself is in `birthmark_sma/simulation`. This package parses options and prints.
"""

from typing import Annotated

import typer

from birthmark_sma.cli.options import Json
from birthmark_sma.cli.simulate.one_sided import aggregator, camera
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

app = typer.Typer(
    no_args_is_help=True,
    help="Play cameras and aggregation servers against an authority.\n\nWhat they leave behind"
    " stays: devices, and rows in the audit trail. Never point them at an authority in use.",
)


@app.command()
def fleet(
    url: Url,
    cameras: Annotated[int, typer.Option(min=1, help="How many cameras.")] = 20,
    duration: Annotated[float, typer.Option(help="How many seconds it takes.")] = 30.0,
    rate: Annotated[float, typer.Option(help="Pictures a second, on average.")] = 20.0,
    even: Annotated[
        bool,
        typer.Option(
            "--even", help="At one pace; else the run is a day, and each family has its hours."
        ),
    ] = False,
    family: Annotated[
        list[str] | None, typer.Option(help="A family's name, where others are not allowed.")
    ] = None,
    aggregators: Annotated[int, typer.Option(min=1, max=8, help="Aggregation servers.")] = 2,
    dual: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the pictures that goes to all of them.")
    ] = 1.0,
    tampering: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the pictures that is tampered with.")
    ] = 0.05,
    clones: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the pictures that clones take.")
    ] = 0.02,
    replays: Annotated[
        float, typer.Option(min=0, max=1, help="Share that replays what was sent before.")
    ] = 0.02,
    stolen: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the cameras that is stolen.")
    ] = 0.02,
    wrong_clocks: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the cameras whose clock is far off.")
    ] = 0.02,
    offline: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the cameras that is offline for a while.")
    ] = 0.1,
    seed: Annotated[
        int | None, typer.Option(min=0, help="The same seed has the same things happen.")
    ] = None,
    settle: Settle = 30.0,
    report_command: Annotated[
        str | None,
        typer.Option(
            help="Run with a stolen camera's serial behind it, such as 'sma devices suspend'; else"
            " the aggregation servers alone know of thefts."
        ),
    ] = None,
    serial_prefix: Annotated[
        str | None, typer.Option(help="What serials begin with; a new one each time unless given.")
    ] = None,
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
    """Play a fleet and its aggregation servers, and say which verdict each case got.

    Exits with 0 only if every bundle ended as the protocol promises, and none was lost.
    """
    from birthmark_sma.simulation.camera_families import families_by_name
    from birthmark_sma.simulation.plan import Terms, build_plan
    from birthmark_sma.simulation.run import RunOptions, new_serial_prefix

    terms = Terms(
        cameras=cameras,
        seconds=duration,
        rate=rate,
        seed=_new_seed() if seed is None else seed,
        families=families_by_name(family or ()),
        aggregators=aggregators,
        dual=dual,
        day=not even,
        tampering=tampering,
        clones=clones,
        replays=replays,
        stolen=stolen,
        wrong_clocks=wrong_clocks,
        offline=offline,
    )
    site = make_target(
        url,
        aggregators=aggregators,
        ca_file=ca_file,
        enrolment_key_file=enrolment_key_file,
        validate_key_file=validate_key_file,
        root_fingerprint=root_fingerprint,
        keys_per_table=keys_per_table,
        report_command=report_command,
    )
    check_writable(report, picture)
    check_empty(directory)
    manner = RunOptions(serial_prefix or new_serial_prefix(), settle, directory)
    tell(play(build_plan(terms), site, manner), report, picture, as_json=as_json)


def _new_seed() -> int:
    import secrets

    return secrets.randbelow(1_000_000)


app.command()(camera)
app.command()(aggregator)
