"""`sma acts`: list, show and export the trail of administrative acts. No command changes it.

The search is in `authority/acts/search.py`.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Argument, Option

from birthmark_sma.cli.commands.device_acts import parse_time
from birthmark_sma.cli.commands.keys import one_of
from birthmark_sma.cli.opening import administration
from birthmark_sma.cli.options import Json, command
from birthmark_sma.cli.output import (
    print_fields,
    print_line,
    print_object,
    print_stderr,
    print_table,
)
from birthmark_sma.counts import counted

if TYPE_CHECKING:
    from collections.abc import Mapping

    from birthmark_sma.authority.acts.search import ActFilter
    from birthmark_sma.config import Settings
    from birthmark_sma.web.api.administration.responses import ActItem

app = typer.Typer(
    no_args_is_help=True, help="Show who changed the authority, when, and from what to what."
)

_SHOWN = 20  # subjects that `show` prints without --json
_MOST_ID = 2**63 - 1

ActId = Annotated[int, Argument(min=1, max=_MOST_ID, help="The id of the act.")]


@dataclass(frozen=True, slots=True, kw_only=True)
class ActOptions:
    """The filters of a search. All that are given must hold."""

    act: Annotated[str | None, Option(help="Only acts of this kind, such as device.suspend.")] = (
        None
    )
    actor: Annotated[str | None, Option(help="Only acts of this actor, such as olga@vault.")] = None
    source: Annotated[
        str | None, Option(help="Only acts from command-line, api, dashboard or server.")
    ] = None
    request_id: Annotated[
        str | None, Option(help="Only acts of the request whose response had this X-Request-ID.")
    ] = None
    subject: Annotated[
        str | None,
        Option(
            help="Only acts on the device with this serial (as it is registered), the access key"
            " with this id, the table with this id, or the CA or renewal order of this name."
        ),
    ] = None
    since: Annotated[str | None, Option(help="Only acts from this time on (ISO 8601, UTC).")] = None
    until: Annotated[str | None, Option(help="Only acts before this time (ISO 8601, UTC).")] = None

    def filter(self) -> "ActFilter":
        """Return the filter. Raises BadParameter for a value that cannot be used."""
        from birthmark_sma.authority.acts.actor import ActKind, Source
        from birthmark_sma.authority.acts.search import ActFilter

        return ActFilter(
            act=None if self.act is None else one_of(ActKind, self.act, "--act"),
            actor=self.actor,
            source=None if self.source is None else one_of(Source, self.source, "--source"),
            request_id=self.request_id,
            subject=self.subject,
            since=parse_time(self.since, "--since"),
            until=parse_time(self.until, "--until"),
        )


@command(app, "acts list", remote=True)
def list_(
    settings: "Settings",
    options: ActOptions,
    limit: Annotated[int, Option(min=1, max=10_000, help="The number of acts to list.")] = 50,
    before: Annotated[
        int | None,
        Option(min=1, max=_MOST_ID, help="Begin before the act with this id, for the next page."),
    ] = None,
    as_json: Json = False,
) -> None:
    """List acts, the newest first."""
    wanted = options.filter()
    with administration(settings) as authority:
        page = authority.list_acts(wanted, limit=limit, before=before)
    if as_json:
        print_object(page)
        return
    if not page.acts:
        print_line("There is no such act.")
        return
    rows = [
        [
            str(each.id),
            f"{each.acted_at:%Y-%m-%d %H:%M:%S}",
            each.act,
            describe_subjects(each),
            each.reason or "-",
            each.actor,
            each.source,
        ]
        for each in page.acts
    ]
    columns = ["ID", "TIME (UTC)", "ACT", "SUBJECT", "REASON", "ACTOR", "SOURCE"]
    print_table(columns, rows, numbers={"ID"})
    if page.next_cursor is not None:
        print_line(f"\nFor the next page: --before {page.next_cursor}")


@command(app, "acts show", remote=True)
def show(settings: "Settings", act_id: ActId, as_json: Json = False) -> None:
    """Show one act: who did it, why, and its subjects before and after.

    Up to 20 subjects are printed, and all of them with --json.
    """
    with administration(settings) as authority:
        act = authority.find_act(act_id, subjects=None if as_json else _SHOWN)
    if as_json:
        print_object(act)
        return
    subjects = act.listed
    fields = [
        ("act", act.act),
        ("time", f"{act.acted_at:%Y-%m-%d %H:%M:%S.%f} UTC"),
        ("actor", act.actor),
        ("source", act.source),
        *((name, value) for name in ("role", "request_id") if (value := getattr(act, name))),
        ("subject", describe_subjects(act)),
        ("reason", act.reason or "-"),
        *((name.replace("_", " "), _value(value)) for name, value in act.more.items()),
    ]
    if act.subjects == 1:
        fields += [("before", _describe(act.before)), ("after", _describe(act.after))]
    print_fields(fields)
    if subjects:
        print_line()
        rows = [[str(e.name), _describe(e.before), _describe(e.after)] for e in subjects]
        print_table(["SUBJECT", "BEFORE", "AFTER"], rows)
    if act.subjects > max(len(subjects), 1):
        print_line(f"\n{act.subjects - len(subjects):,} more. To see all: --json")


@command(app, "acts export", remote=True)
def export(
    settings: "Settings",
    options: ActOptions,
    output: Annotated[
        Path | None,
        Option(help="A new file, readable by its owner alone. Default: standard output."),
    ] = None,
    without_serials: Annotated[
        bool, Option("--without-serials", help="Leave out what names a device.")
    ] = False,
) -> None:
    """Write acts as JSON Lines, the newest first.

    Each act is a line. If it has several subjects, a line for each of them follows, with `act_id`.
    """
    from birthmark_sma.authority.representations.json_text import as_json_text
    from birthmark_sma.runtime.secret_files import new_private_file

    wanted = options.filter()
    with administration(settings) as authority:
        rows = authority.export_acts(wanted, serials=not without_serials)
        lines = (f"{as_json_text(each)}\n" for each in rows)
        if output is None:
            for line in lines:
                typer.echo(line, nl=False)
            return
        number = 0
        with new_private_file(output) as file:
            for line in lines:
                file.write(line.encode())
                number += 1
    print_stderr(f"{counted(number, 'line')} written to {output}.")


def describe_subjects(act: "ActItem") -> str:
    """Return the name of the subject, or how many there are."""
    if act.subject is not None:
        name = (act.after or {}).get("name")
        return act.subject if name is None else f"{act.subject} ({name})"
    kind = act.subject_kind.replace("-", " ")
    return counted(act.subjects, kind) if act.subjects > 1 else "-"


def _describe(facts: "Mapping[str, Any] | None") -> str:
    if not facts:
        return "-"
    return ", ".join(f"{name.replace('_', ' ')} {_value(each)}" for name, each in facts.items())


def _value(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
