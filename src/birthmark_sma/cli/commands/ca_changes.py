"""`sma ca rotate`, `compromised` and `roll-root`: replace the CAs of an authority.

The work is in `authority/ca/succession.py`. No command prints a secret. Servers may run meanwhile.
"""

from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Argument, Option

from birthmark_sma.cli.actor import find_actor
from birthmark_sma.cli.commands.device_acts import parse_time
from birthmark_sma.cli.opening import existing_database, find_platform
from birthmark_sma.cli.options import Json, command
from birthmark_sma.cli.output import confirm, print_json, print_line, waiting
from birthmark_sma.counts import counted
from birthmark_sma.errors import ConfigurationError
from birthmark_sma.pki.keys.ca_keys import CaKeyType

if TYPE_CHECKING:
    from birthmark_sma.authority.ca.succession import Succession, Successions
    from birthmark_sma.config import Settings

_KeyType = Annotated[
    CaKeyType | None, Option(help="The type of a new key. By default that of the key before.")
]
_Yes = Annotated[bool, Option("--yes", help="Do it without asking.")]
_DryRun = Annotated[
    bool, Option("--dry-run", help="Make all checks and signatures, and change nothing.")
]


def rotate(
    settings: "Settings",
    key_type: _KeyType = None,
    prepare_only: Annotated[
        bool, Option("--prepare-only", help="Publish the new intermediate. It signs nothing yet.")
    ] = False,
    activate: Annotated[
        str | None, Option(help="Let this prepared intermediate sign. No root key is needed.")
    ] = None,
    yes: _Yes = False,
    dry_run: _DryRun = False,
    as_json: Json = False,
) -> None:
    """Sign a new intermediate with the root's key, and let it sign new device certificates.

    The intermediate before it becomes retiring: it signs no more device certificates, and keeps
    publishing its revocation list. Certificates of devices stay valid to their end.
    """
    if activate is not None and (prepare_only or key_type is not None):
        raise typer.BadParameter("--activate goes with neither --prepare-only nor --key-type.")
    what = (
        "A new intermediate is signed and published. It signs nothing until you activate it."
        if prepare_only
        else "Another intermediate signs new device certificates. This cannot be undone."
    )
    _ask(what, yes=yes or dry_run)

    def act(successions: "Successions") -> "Succession":
        if activate is not None:
            return successions.activate(activate)
        return successions.rotate(key_type, prepare_only=prepare_only)

    done = _run(settings, act, dry_run=dry_run)
    if as_json:
        print_json(_as_json(done, dry_run=dry_run))
        return
    if prepare_only:
        _print(
            dry_run,
            f"{done.added[0]} is signed and published.",
            f"Next: give it to verifiers, then type: sma ca rotate --activate {done.added[0]}",
        )
        return
    _print(
        dry_run,
        f"{done.active} signs new device certificates.",
        f"{', '.join(done.retiring)} is retiring: its devices stay valid, and its revocation list"
        " is published.",
        "Servers use the new one within a second. To see all: sma ca list",
        "Next: sma backup",
    )


def compromised(
    settings: "Settings",
    name: Annotated[str, Argument(help="The intermediate, as sma ca list names it.")],
    since: Annotated[
        str | None,
        Option(help="The time since when its key may be in other hands: 2026-07-14T09:00Z."),
    ] = None,
    key_type: _KeyType = None,
    yes: _Yes = False,
    dry_run: _DryRun = False,
    as_json: Json = False,
) -> None:
    """Put an intermediate on the root's revocation list, and stop signing with its key.

    Verifiers that check the root's list then refuse all certificates under it. If it is the active
    one, a prepared intermediate takes its place, or a new one. Its devices stay registered and need
    new certificates. Needs the root's key. Run it again with another --since to correct the time.
    """
    at = parse_time(since, "--since")
    _ask(
        f"All device certificates under {name} become invalid for ever for verifiers that check the"
        " root's revocation list.",
        yes=yes or dry_run,
    )
    done = _run(settings, lambda each: each.compromise(name, at, key_type), dry_run=dry_run)
    devices = _count_devices(settings, name)
    if as_json:
        print_json(_as_json(done, dry_run=dry_run) | {"devices": devices})
        return
    if done.compromised is None:
        print_line(f"{name} is compromised already. Nothing was changed.")
        return
    _print(
        dry_run,
        f"{name} is compromised: it is on the revocation list of its root, and signs nothing.",
        f"{counted(devices, 'device has', 'devices have')} certificates under it. They need new"
        " ones.",
        f"{done.active} signs new device certificates.",
        "Verifiers see it when they fetch the root's list. See docs/operate/certificates.md.",
        "Next: sma backup",
    )


def roll_root(
    settings: "Settings",
    key_type: _KeyType = None,
    yes: _Yes = False,
    dry_run: _DryRun = False,
    as_json: Json = False,
) -> None:
    """Create a new root with cross-certificates, and a new intermediate under it.

    The old root signs the list of trusted roots, which verifiers fetch. Certificates of devices
    stay valid to their end. Needs the key of the old root.
    """
    found = find_platform()
    if found is not None and settings.root_key_file is None:
        raise ConfigurationError(
            f"This platform ({found} is set) deletes its disk at a restart, and with it the new"
            " root's key. Run this command on your own machine, with the same DATABASE_URL and"
            " CA_PASSWORD"
        )
    _ask(
        "A new root is created. Verifiers and devices must come to trust it before the old one"
        " ends. This cannot be undone.",
        yes=yes or dry_run,
    )
    done = _run(settings, lambda each: each.roll_root(key_type), dry_run=dry_run)
    if as_json:
        print_json(_as_json(done, dry_run=dry_run))
        return
    root, old = done.added[0], done.retiring[0]
    _print(
        dry_run,
        f"{root} is the root of new certificates, and {done.active} signs them.",
        f"{old} is retiring. Its devices stay valid, and cross-certificates connect both roots.",
        f"The key of {root} is in {done.root_key_file} (encrypted). Move it to a safe place. Keep"
        f" the key of {old}, too: it revokes its intermediates.",
        "Next: let verifiers trust both roots: docs/operate/certificates.md. Then: sma backup",
    )


def register(app: typer.Typer) -> None:
    """Add the commands to those of `sma ca`."""
    command(app, "ca rotate")(rotate)
    command(app, "ca compromised")(compromised)
    command(app, "ca roll-root")(roll_root)


def _ask(what: str, *, yes: bool) -> None:
    confirm(what, "Go on?", "To do it without being asked, add --yes.", yes=yes)


def _run(
    settings: "Settings", act: "Callable[[Successions], Succession]", *, dry_run: bool
) -> "Succession":
    from birthmark_sma.authority.ca.succession import Successions

    with existing_database(settings) as database, waiting("Making keys and certificates"):
        return act(Successions(database, settings, find_actor(), dry_run=dry_run))


def _count_devices(settings: "Settings", name: str) -> int:
    from birthmark_sma.authority.ca import store as ca_store

    with existing_database(settings) as database, database.read() as connection:
        return ca_store.count_devices_under(connection).get(name, 0)


def _as_json(done: "Succession", *, dry_run: bool) -> dict[str, object]:
    key_file = None if done.root_key_file is None else str(done.root_key_file)
    return asdict(done) | {"root_key_file": key_file, "dry_run": dry_run}


def _print(dry_run: bool, *lines: str) -> None:
    if dry_run:
        print_line("Nothing was changed. Without --dry-run:\n")
    for line in lines:
        print_line(line)
