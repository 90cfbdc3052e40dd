"""`sma validations list` and `show`: search the audit log, and tell why a camera token failed.

The search is in `authority/validation/audit_search.py`, and what is known about a validation in
`authority/validation/validation_details.py`. The commands read only. They are for the operator: a
caller must never get the reasons.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Argument, Option

from birthmark_sma.cli.durations import parse_duration
from birthmark_sma.cli.opening import administration
from birthmark_sma.cli.options import Json, command
from birthmark_sma.cli.output import print_fields, print_line, print_object, print_table, waiting
from birthmark_sma.counts import counted
from birthmark_sma.protocol.key_table import MAX_WIRE_INTEGER
from birthmark_sma.protocol.replay import Repeat
from birthmark_sma.protocol.verdict import Reason, Verdict

if TYPE_CHECKING:
    from birthmark_sma.config import Settings
    from birthmark_sma.web.api.administration.responses import ValidationDetails, ValidationItem

app = typer.Typer(
    no_args_is_help=True, help="Search the audit log, and tell why a camera token failed."
)

_DIGEST_HEX = 32
_HOW_TO_GIVE_TIMES = "a time such as 2026-11-30T09:00 (UTC), or how long ago: 90m, 12h, 7d"


@command(app, "validations list", remote=True)
def list_(
    settings: "Settings",
    result: Annotated[Verdict | None, Option(help="The verdict.")] = None,
    reason: Annotated[Reason | None, Option(help="The reason of the verdict.")] = None,
    repeat: Annotated[Repeat | None, Option(help="The kind of repeat.")] = None,
    device: Annotated[str | None, Option(help="The device's serial, in any case.")] = None,
    table: Annotated[
        int | None, Option(min=0, max=MAX_WIRE_INTEGER, help="The key table of the token.")
    ] = None,
    caller: Annotated[
        str | None,
        Option(help="The id of the caller's access key, or the address of one without a key."),
    ] = None,
    request_id: Annotated[
        str | None, Option(help="The X-Request-ID of the response, whole.")
    ] = None,
    token_digest: Annotated[
        str | None, Option(help="The digest of the camera token: 32 hex digits.")
    ] = None,
    camera_token: Annotated[
        Path | None,
        Option(help="A JSON file with the camera token, in place of its digest; - reads stdin."),
    ] = None,
    since: Annotated[str | None, Option(help=f"Not before: {_HOW_TO_GIVE_TIMES}.")] = None,
    until: Annotated[str | None, Option(help="Before this time, as --since.")] = None,
    limit: Annotated[int, Option(min=1, max=10_000, help="The number of rows to list.")] = 50,
    before: Annotated[
        str | None, Option(help="Continue here: the place that the page before named.")
    ] = None,
    as_json: Json = False,
) -> None:
    """List validated camera tokens, the newest first. Several criteria are combined."""
    from birthmark_sma.authority.validation.audit_search import AuditFilter

    digests = _digests_of(token_digest, camera_token)
    place = _parse_place(before)
    with administration(settings) as authority, waiting("Searching"):
        now = authority.now()
        for digest in digests:
            wanted = AuditFilter(
                result=result,
                reason=reason,
                repeat=repeat,
                device_serial=device,
                table_id=table,
                caller=caller,
                since=_parse_time(since, "--since", now),
                until=_parse_time(until, "--until", now),
                request_id=request_id,
                token_digest=digest,
            )
            page = authority.list_validations(wanted, limit=limit, before=place)
            if page.validations:
                break
    if as_json:
        print_object(page)
        return
    if not page.validations:
        print_line("No validation is like that.")
        return
    print_table(
        ["TIME (UTC)", "RESULT", "REASON", "DEVICE", "TABLE", "KEY", "CALLER", "REQUEST ID"],
        [_row(each) for each in page.validations],
        numbers={"TABLE", "KEY"},
    )
    if page.next_cursor is not None:
        print_line(f"\nFor the next page: --before '{page.next_cursor}'")


@command(app, "validations show", remote=True)
def show(
    settings: "Settings",
    request_id: Annotated[
        str, Argument(help="The X-Request-ID of the response, or of the caller's own request.")
    ],
    as_json: Json = False,
) -> None:
    """Show all camera tokens of a request: verdict, reason, and what to do about it.

    Several requests may have one id, if a caller sent it more than once. The exit code is 5 if
    nothing is found.
    """
    with administration(settings) as authority, waiting("Searching"):
        answer = authority.find_validations(request_id)
    if as_json:
        print_object(answer)
    elif len(answer.validations) == 1:
        _print_one(answer.validations[0], answer.callers)
    else:
        _print_many(answer.validations, answer.callers)


def _print_one(found: "ValidationDetails", names: dict[str, str]) -> None:
    waited = "-" if found.waited_us is None else f"{found.waited_us / 1_000:,.1f} ms"
    fields = [
        ("result", _coloured(found.validation_result)),
        ("reason", f"{found.reason}\n{found.meaning}"),
        ("what to do", found.advice),
        ("validated at", f"{_time(found.validated_at, is_coarse=found.is_coarse)} UTC"),
        ("judged after", waited),
        ("request id", found.request_id or "-"),
        ("device", found.device_serial or "-"),
        ("key table", str(found.table_id)),
        ("key index", str(found.key_index)),
        ("token digest", found.token_digest or "-"),
        ("caller", _caller(found, names)),
        ("repeat", "no" if found.repeat is None else f"{found.repeat}\n{found.repeat_meaning}"),
    ]
    if found.batch_position is not None:
        fields.append(("position", f"element {found.batch_position} of a batch, from 0"))
    if found.first_seen_at is not None:
        first = _identity_with_name(found.first_caller or "-", names)
        fields.append(("first seen", f"{_ledger_time(found.first_seen_at)} UTC, {first}"))
        again = [
            f"{counted(each.times, 'time')}, last {_ledger_time(each.last_seen_at)} UTC,"
            f" {_identity_with_name(each.caller, names)}"
            for each in found.seen_again
        ]
        if again:
            fields.append(("seen again", "\n".join(again)))
    print_fields(fields)


def _print_many(found: "Sequence[ValidationDetails]", names: dict[str, str]) -> None:
    rows = []
    for each in found:
        position = "-" if each.batch_position is None else str(each.batch_position)
        rows.append([position, *_row(each)[:-2], each.repeat or "-", each.token_digest or "-"])
    columns = ["POSITION", "TIME (UTC)", "RESULT", "REASON", "DEVICE", "TABLE", "KEY"]
    numbers = {"POSITION", "TABLE", "KEY"}
    print_table([*columns, "REPEAT", "TOKEN DIGEST"], rows, numbers=numbers)
    print_line()
    callers = sorted({_caller(each, names) for each in found})
    fields = [("caller", "\n".join(callers))]
    fields += {
        each.reason: (each.reason, f"{each.meaning}\n{each.advice}") for each in found
    }.values()
    fields += {
        each.repeat: (each.repeat, f"{each.repeat_meaning}\n{each.repeat_advice}")
        for each in found
        if each.repeat is not None
    }.values()
    print_fields(fields)


def _row(entry: "ValidationItem") -> list[str]:
    return [
        _time(entry.validated_at, is_coarse=entry.is_coarse, cut=3),
        entry.validation_result,
        entry.reason,
        entry.device_serial or "-",
        str(entry.table_id),
        str(entry.key_index),
        entry.caller or _address(entry),
        entry.request_id or "-",
    ]


def _caller(entry: "ValidationItem", names: dict[str, str]) -> str:
    address = _address(entry)
    if entry.caller is None:
        return f"{address}, without an access key"
    return f"{_identity_with_name(f'key:{entry.caller}', names)}, from {address}"


def _address(entry: "ValidationItem") -> str:
    return "address dropped" if entry.is_coarse else entry.request_ip or "this machine"


def _time(time: datetime, *, is_coarse: bool, cut: int = 0) -> str:
    """Return a time without the last `cut` digits, or the hour alone if no more is known."""
    if is_coarse:
        return f"{time:%Y-%m-%d %H h}"
    exact = f"{time:%Y-%m-%d %H:%M:%S.%f}"
    return exact[: len(exact) - cut]


def _ledger_time(time: datetime) -> str:
    return _time(time, is_coarse=time == time.replace(minute=0, second=0, microsecond=0))


def _identity_with_name(identity: str, names: dict[str, str]) -> str:
    return f"{identity} ({names[identity]})" if identity in names else identity


def _coloured(verdict: str) -> str:
    passed = verdict == Verdict.PASS
    return typer.style(verdict, fg=typer.colors.GREEN if passed else typer.colors.RED, bold=True)


def _digests_of(text: str | None, file: Path | None) -> "Sequence[bytes | None]":
    """Return the digests to search for, in turn: a token has one for each key derivation."""
    from birthmark_sma.cli.commands.validate import parse_camera_token, read_file
    from birthmark_sma.protocol.camera_token import token_digest
    from birthmark_sma.protocol.key_derivation import NORMATIVE, PUBLISHED_CLIENTS

    if file is not None:
        if text is not None:
            raise typer.BadParameter("Give --token-digest or --camera-token, not both.")
        token = parse_camera_token(read_file(file))
        return [token_digest(token, derivation) for derivation in (NORMATIVE, PUBLISHED_CLIENTS)]
    if text is None:
        return [None]
    try:
        digest = bytes.fromhex(text)
    except ValueError:
        digest = b""
    if len(text) != _DIGEST_HEX or len(digest) != _DIGEST_HEX // 2:
        raise typer.BadParameter("A token digest has 32 hex digits.", param_hint="--token-digest")
    return [digest]


def _parse_place(text: str | None) -> Any:
    from birthmark_sma.authority.validation.audit_search import Cursor

    try:
        return None if text is None else Cursor.parse(text)
    except ValueError:
        raise typer.BadParameter(
            "This is no place that a page named.", param_hint="--before"
        ) from None


def _parse_time(text: str | None, option: str, now: datetime) -> datetime | None:
    """Return a time that is given as such, or as a duration before now."""
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
        return (moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment).astimezone(UTC)
    except ValueError:
        pass
    except OverflowError:
        raise typer.BadParameter(f"{text} is out of range.", param_hint=option) from None
    try:
        return now - parse_duration(text, option, may_be_zero=True)
    except typer.BadParameter:
        raise typer.BadParameter(
            f"{text!r} is no time. Give {_HOW_TO_GIVE_TIMES}.", param_hint=option
        ) from None
