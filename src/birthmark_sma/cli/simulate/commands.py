"""`sma simulate`: the command `fleet`, and registration of `camera` and `aggregator`.

The simulation itself is in `birthmark_sma/simulation`. This package parses options and prints.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Option

from birthmark_sma.cli.options import Json, command
from birthmark_sma.cli.simulate.one_sided import aggregator, camera
from birthmark_sma.cli.simulate.options import RunOptions
from birthmark_sma.cli.simulate.report import play, print_outcome
from birthmark_sma.errors import ConfigurationError

if TYPE_CHECKING:
    from birthmark_sma.simulation.plan import Terms

app = typer.Typer(
    no_args_is_help=True,
    help="Simulate cameras and aggregation servers against an authority.\n\nTheir devices and audit"
    " rows stay in its database. Never use an authority that is in use.",
)


def _share(text: str) -> typer.models.OptionInfo:
    option: typer.models.OptionInfo = Option(min=0, max=1, help=text)
    return option


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanOptions:
    """The options from which the plan of a fleet is made."""

    cameras: Annotated[int, Option(min=1, help="The number of cameras.")] = 20
    duration: Annotated[float, Option(help="The duration in seconds.")] = 30.0
    rate: Annotated[float, Option(help="The average number of pictures a second.")] = 20.0
    even: Annotated[
        bool,
        Option(
            "--even",
            help="Take pictures at a constant rate. Default: the run represents a day, in which"
            " each family of cameras has its hours.",
        ),
    ] = False
    family: Annotated[
        list[str] | None, Option(help="The only family of cameras to simulate. It can be repeated.")
    ] = None
    aggregators: Annotated[int, Option(min=1, max=8, help="The number of aggregation servers.")] = 2
    dual: Annotated[
        float, _share("The share of pictures that is sent to all aggregation servers.")
    ] = 1.0
    tampering: Annotated[float, _share("The share of pictures that is tampered with.")] = 0.05
    clones: Annotated[float, _share("The share of pictures that is taken by clones.")] = 0.02
    replays: Annotated[float, _share("The share of pictures that replays an earlier one.")] = 0.02
    stolen: Annotated[float, _share("The share of cameras that is stolen.")] = 0.02
    wrong_clocks: Annotated[float, _share("The share of cameras with a wrong clock.")] = 0.02
    offline: Annotated[float, _share("The share of cameras that is offline for a while.")] = 0.1
    seed: Annotated[
        int | None, Option(min=0, help="The seed. The same seed makes the same plan.")
    ] = None

    def terms(self) -> "Terms":
        """Return the terms of the plan. Raises ConfigurationError if they are out of bounds."""
        import secrets

        from birthmark_sma.simulation.camera_families import families_by_name
        from birthmark_sma.simulation.plan import Terms

        given = asdict(self)
        seed = given.pop("seed")
        return Terms(
            seconds=given.pop("duration"),
            day=not given.pop("even"),
            families=families_by_name(given.pop("family") or ()),
            seed=secrets.randbelow(1_000_000) if seed is None else seed,
            **given,
        )


@command(app, "simulate fleet")
def fleet(
    plan: PlanOptions,
    run: RunOptions,
    report_command: Annotated[
        str | None,
        Option(
            help="A command that reports a stolen camera, such as 'sma devices suspend'. The serial"
            " is appended. Default: only the aggregation servers know of thefts."
        ),
    ] = None,
    serial_prefix: Annotated[
        str | None, Option(help="The beginning of all serials. Default: a new one.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Simulate a fleet and its aggregation servers, and print the verdicts of each case.

    The exit code is 0 only if every bundle got the right verdict and none was lost.
    """
    from birthmark_sma.simulation import run as simulation
    from birthmark_sma.simulation.plan import build_plan

    terms = plan.terms()
    site = run.site(plan.aggregators, report_command=_split_command(report_command))
    options = simulation.RunOptions(
        serial_prefix or simulation.new_serial_prefix(), run.settle, run.directory
    )
    print_outcome(play(build_plan(terms), site, options), run, as_json=as_json)


def _split_command(text: str | None) -> Sequence[str]:
    import shlex

    try:
        return tuple(shlex.split(text or ""))
    except ValueError:
        raise ConfigurationError(
            "--report-command has an opening quote without a closing one."
        ) from None


command(app, "simulate camera")(camera)
command(app, "simulate aggregator")(aggregator)
