"""`sma devices suspend`, `reinstate`, `revoke` and `retire`: one device, or many in one act.

`commands/devices.py` registers them. The act itself is `authority/devices/revocation.py`, its rules
are in `states.py` beside it. An act is done as a whole or not at all. A command must never act on
all devices because nothing was named.
"""

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO

import typer
from typer import Argument, Option

from birthmark_sma.cli.actor import find_actor
from birthmark_sma.cli.opening import administration
from birthmark_sma.cli.options import Json
from birthmark_sma.cli.output import (
    as_argument,
    confirm,
    print_line,
    print_object,
    print_table,
    waiting,
)
from birthmark_sma.counts import counted
from birthmark_sma.protocol.key_table import MAX_WIRE_INTEGER

if TYPE_CHECKING:
    from birthmark_sma.authority.devices.revocation import DeviceCriteria
    from birthmark_sma.authority.devices.states import StatusChange
    from birthmark_sma.config import Settings
    from birthmark_sma.web.api.administration.responses import DeviceActResponse

_SHOWN = 10  # serials that a preview lists
_MOST_LINE_BYTES = 1_000  # a serial has up to 64 characters
_MOST_BAD_LINES = 5
_STDIN = "-"


@dataclass(frozen=True, slots=True, kw_only=True)
class ActOptions:
    """The devices of an act, by name or by criteria, and whether to ask."""

    device_serials: Annotated[
        list[str] | None, Argument(help="The devices' serials, in any case.")
    ] = None
    file: Annotated[
        str | None,
        Option(help="A file with one serial a line, or - for standard input. # begins a comment."),
    ] = None
    family: Annotated[str | None, Option(help="All devices of this family.")] = None
    app_version: Annotated[str | None, Option(help="All devices with this app version.")] = None
    provisioned_after: Annotated[
        str | None, Option(help="All devices provisioned at this time or later (ISO 8601, UTC).")
    ] = None
    provisioned_before: Annotated[
        str | None, Option(help="All devices provisioned before this time (ISO 8601, UTC).")
    ] = None
    table: Annotated[
        int | None,
        Option(
            min=0, max=MAX_WIRE_INTEGER, help="All devices to which this key table is assigned."
        ),
    ] = None
    dry_run: Annotated[
        bool, Option("--dry-run", help="Print what would change, and change nothing.")
    ] = False
    yes: Annotated[bool, Option("--yes", help="Do not ask.")] = False

    def wanted(self) -> "list[str] | DeviceCriteria":
        """Return the serials or the criteria that the options give.

        Raises BadParameter if there is neither or both, and DeviceSerialRefusedError for lines of
        the file that are no serials.
        """
        from birthmark_sma.authority.devices.revocation import DeviceCriteria

        criteria = DeviceCriteria(
            family=self.family,
            app_version=self.app_version,
            provisioned_after=parse_time(self.provisioned_after, "--provisioned-after"),
            provisioned_before=parse_time(self.provisioned_before, "--provisioned-before"),
            table_id=self.table,
        )
        names = list(self.device_serials or [])
        is_named = bool(names) or self.file is not None
        if is_named == (criteria != DeviceCriteria()):
            raise typer.BadParameter(
                "Give either serials (as arguments or with --file) or filters (--family,"
                " --app-version, --provisioned-after, --provisioned-before, --table)."
            )
        if not is_named:
            return criteria
        return names if self.file is None else [*names, *_read_serials(self.file)]

    @property
    def is_explicit(self) -> bool:
        """Return True if each device is named by arguments or a file that can be read again."""
        filters = {field.name for field in fields(self)} - {
            *("device_serials", "file", "dry_run", "yes")
        }
        return self.file != _STDIN and all(getattr(self, name) is None for name in filters)


def suspend(settings: "Settings", options: ActOptions, as_json: Json = False) -> None:
    """Suspend devices: their tokens FAIL, and their certificates are on hold, until reinstated."""
    from birthmark_sma.authority.devices import states

    _act(settings, options, states.suspend(find_actor()), as_json=as_json)


def reinstate(settings: "Settings", options: ActOptions, as_json: Json = False) -> None:
    """End the suspension of devices."""
    from birthmark_sma.authority.devices import states

    _act(settings, options, states.reinstate(find_actor()), as_json=as_json)


def revoke(
    settings: "Settings",
    options: ActOptions,
    reason: Annotated[
        str,
        Option(
            help="unspecified, key_compromise, affiliation_changed, superseded,"
            " cessation_of_operation or privilege_withdrawn."
        ),
    ] = "unspecified",
    compromised_since: Annotated[
        str | None,
        Option(
            help="With key_compromise: the time since when the key may be in other hands (ISO 8601,"
            " UTC). Pictures that an aggregation server received before stay valid."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Revoke devices: their tokens FAIL for ever, and their certificates go on the CRL.

    A revocation cannot be undone. If you are not sure, suspend the devices instead.
    """
    from birthmark_sma.authority.devices import states

    since = parse_time(compromised_since, "--compromised-since")
    _act(settings, options, states.revoke(find_actor(), reason, since), as_json=as_json)


def retire(settings: "Settings", options: ActOptions, as_json: Json = False) -> None:
    """Retire devices that are out of use: their tokens FAIL, and their certificates are on the CRL.

    Have the pictures in their queues sent before. Retired devices cannot be reinstated.
    """
    from birthmark_sma.authority.devices import states

    _act(settings, options, states.retire(find_actor()), as_json=as_json)


def parse_time(text: str | None, option: str) -> datetime | None:
    """Return the time that an option gives, in UTC if it has no zone. Raises BadParameter."""
    if text is None:
        return None
    try:
        when = datetime.fromisoformat(text)
        return when.replace(tzinfo=UTC) if when.tzinfo is None else when.astimezone(UTC)
    except (ValueError, OverflowError):
        raise typer.BadParameter(
            "Give a day or a time, such as 2026-03-01 or 2026-03-01T12:00:00Z.", param_hint=option
        ) from None


def _act(
    settings: "Settings", options: ActOptions, change: "StatusChange", *, as_json: bool
) -> None:
    wanted = options.wanted()
    named = isinstance(wanted, Sequence)
    with administration(settings) as authority:
        if options.dry_run or _has_to_ask(options, wanted, change):
            preview = authority.change_devices(wanted, change, dry_run=True)
            if options.dry_run:
                _report(preview, change, named=named, as_json=as_json)
                return
            if preview.changed_devices and not _is_prevented(preview, named=named):
                _ask(preview, change)
        with waiting("Changing the register"):
            result = authority.change_devices(wanted, change)
    _report(result, change, named=named, as_json=as_json)


def _has_to_ask(
    options: ActOptions, wanted: "Sequence[str] | DeviceCriteria", change: "StatusChange"
) -> bool:
    """Return whether a person must agree first.

    Without a terminal nobody can be asked. Then devices that are named one by one need no consent,
    so that scripts go on working. Filters and standard input do: `_ask` refuses them.
    """
    if options.yes:
        return False
    if not options.is_explicit:
        return True
    is_one = not isinstance(wanted, Sequence) or len(wanted) == 1
    return sys.stdin.isatty() and (change.act.is_final or not is_one)


def _ask(preview: "DeviceActResponse", change: "StatusChange") -> None:
    verb = change.act.value
    families: Counter[str] = Counter()
    for each in preview.counts:
        families[each.device_family] += each.devices
    some = ", ".join(f"{name}: {number:,}" for name, number in families.most_common(3))
    others = ", ..." if len(families) > 3 else ""
    for_ever = ", and cannot be undone" if change.act.is_final else ""
    confirm(
        f"This {verb}s {counted(preview.changed_devices, 'device')} ({some}{others}){for_ever}.",
        f"{verb.capitalize()}?",
        "Add --yes, or try --dry-run first.",
        yes=False,
    )


def _is_prevented(result: "DeviceActResponse", *, named: bool) -> bool:
    return named and bool(result.unknown or result.refused)


def _report(
    result: "DeviceActResponse", change: "StatusChange", *, named: bool, as_json: bool
) -> None:
    """Print what an act did or would do. Raise its error if the devices prevent it.

    JSON is printed before the error as well, because it lists all devices that prevent the act.
    """
    from birthmark_sma.authority.devices.revocation import refuse

    if as_json:
        print_object(result)
    if _is_prevented(result, named=named):
        refuse(change, zip(result.refused, result.refused_statuses, strict=True), result.unknown)
    if not as_json:
        (_print_done if result.done else _print_preview)(result, change)


def _print_preview(result: "DeviceActResponse", change: "StatusChange") -> None:
    if result.changed:
        rows = [[each.device_family, each.status, f"{each.devices:,}"] for each in result.counts]
        print_table(["FAMILY", "STATUS", "DEVICES"], rows, numbers=["DEVICES"])
        some = result.changed[:_SHOWN]
        more = result.changed_devices - len(some)
        print_line(f"\n{', '.join(some)}" + (f" and {more:,} more" if more else ""))
    number = counted(result.changed_devices, "device")
    print_line(f"{number} would become {change.act.status.value}.{_others(result, change)}")


def _print_done(result: "DeviceActResponse", change: "StatusChange") -> None:
    status = change.act.status.value
    if len(result.changed) == 1:
        [serial] = result.changed
        undo = (
            f" To undo: sma devices reinstate {as_argument(serial)}"
            if status == "suspended"
            else ""
        )
        print_line(f"{serial} is {status}.{_others(result, change)}{undo}")
    elif result.changed:
        print_line(f"{result.changed_devices:,} devices are {status}.{_others(result, change)}")
    elif result.unchanged or result.refused:
        print_line(f"Nothing changed.{_others(result, change)}")
    else:
        print_line("Nothing changed: no device meets these criteria.")


def _others(result: "DeviceActResponse", change: "StatusChange") -> str:
    parts = []
    if result.unchanged:
        were = "was" if result.unchanged_devices == 1 else "were"
        parts.append(f" {result.unchanged_devices:,} {were} {change.act.status.value} before.")
    if result.refused:
        statuses = " or ".join(sorted(set(result.refused_statuses)))
        parts.append(f" {result.refused_devices:,} cannot change: {statuses}.")
    return "".join(parts)


# --- the file of serials


def _read_serials(file: str) -> list[str]:
    serials, bad = [], []
    with _opened(file) as stream:
        for number, line in enumerate(_lines(stream), start=1):
            serial = _parse(line)
            if serial is None:
                bad.append(number)
            elif serial:
                serials.append(serial)
    if bad:
        from birthmark_sma.errors import DeviceSerialRefusedError

        some = ", ".join(map(str, bad[:_MOST_BAD_LINES]))
        more = f" and {len(bad) - _MOST_BAD_LINES:,} more" if len(bad) > _MOST_BAD_LINES else ""
        lines = "Line" if len(bad) == 1 else "Lines"
        where = "standard input" if file == _STDIN else file
        raise DeviceSerialRefusedError(
            f"{lines} {some}{more} of {where}: no device serial. Write one serial a line, of up to"
            " 64 printable characters in UTF-8. Nothing changed."
        )
    return serials


@contextmanager
def _opened(file: str) -> Iterator[BinaryIO]:
    if file == _STDIN:
        yield sys.stdin.buffer
        return
    with Path(file).open("rb") as stream:
        yield stream


def _lines(stream: BinaryIO) -> Iterator[bytes]:
    """Yield each line. Cut one off that is too long for a serial, so that memory is bounded."""
    while line := stream.readline(_MOST_LINE_BYTES):
        yield line
        while line and not line.endswith(b"\n"):
            line = stream.readline(_MOST_LINE_BYTES)


def _parse(line: bytes) -> str | None:
    """Return the serial of a line, "" for a blank line or a comment, or None for a bad line."""
    from birthmark_sma.errors import DeviceSerialRefusedError
    from birthmark_sma.pki.names import check_device_serial

    try:
        text = line.decode("utf-8-sig").strip()
        if text and not text.startswith("#"):
            check_device_serial(text)
    except (UnicodeDecodeError, DeviceSerialRefusedError):
        return None
    return "" if text.startswith("#") else text
