"""`sma keys`: create, list, revoke and rotate access keys.

The rules are in `authority/access/keys.py`. A secret is printed once, by `create` and `rotate`; it
must never be stored or logged.
"""

import re
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from birthmark_sma.cli.commands.init import existing_database
from birthmark_sma.cli.options import DatabaseUrl, DataDir, Json
from birthmark_sma.cli.output import print_fields, print_json, print_line, print_stderr, print_table

if TYPE_CHECKING:
    from cryptography.x509 import Certificate

    from birthmark_sma.authority.access.keys import IssuedKey
    from birthmark_sma.authority.access.store import AccessKey

app = typer.Typer(
    no_args_is_help=True,
    help="Create, list, revoke and rotate access keys.\n\nChanges count on every running server"
    " within a second.",
)

NameOrId = Annotated[str, typer.Argument(help="The key's name or id.")]

_UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="Whose key it is: newsroom-1, factory-line-3.")],
    scope: Annotated[str, typer.Option(help="What it is good for: provision, validate or admin.")],
    expires: Annotated[
        str | None,
        typer.Option(help="When it ends: 12h, 7d, 2026-12-31, or 2026-12-31T18:00+01:00."),
    ] = None,
    family: Annotated[
        str | None, typer.Option(help="With provision: only devices of this family.")
    ] = None,
    uses: Annotated[
        int | None, typer.Option(min=1, max=2**31 - 1, help="With provision: so many devices.")
    ] = None,
    disclosure: Annotated[
        str | None,
        typer.Option(
            help="With validate: what a PASS tells, serial, family or none; else as the server is"
            " set."
        ),
    ] = None,
    rate: Annotated[
        str | None,
        typer.Option(
            help='Camera tokens, devices or requests that it may send, as "100/second" or "none";'
            " else as the server is set."
        ),
    ] = None,
    client_cert: Annotated[
        Path | None,
        typer.Option(help="A client certificate (PEM) that stands for this key, by fingerprint."),
    ] = None,
    client_issuer: Annotated[
        Path | None,
        typer.Option(help="A CA certificate (PEM): every client certificate of it stands for this"),
    ] = None,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
    as_json: Json = False,
) -> None:
    """Make an access key, and show it this once.

    \b
    An aggregation server:   sma keys create newsroom-1 --scope validate --disclosure family
    One camera:              sma keys create desk-7 --scope provision --uses 1 --expires 2d
    A batch of phones:       sma keys create friday --scope provision --family Android --uses 500
    """
    from birthmark_sma.authority.access.keys import KeyTerms, create_key
    from birthmark_sma.authority.access.store import KeyScope
    from birthmark_sma.config import Disclosure

    if client_cert is not None and client_issuer is not None:
        raise typer.BadParameter("give --client-cert or --client-issuer, not both")
    terms = KeyTerms(
        name=name,
        scope=_one_of(KeyScope, scope, "--scope"),
        expires_at=None if expires is None else _moment(expires),
        device_family=family,
        uses_allowed=uses,
        disclosure=None
        if disclosure is None
        else _one_of(Disclosure, disclosure, "--disclosure").value,
        rate_limit=rate,
        certificate_fingerprint=None if client_cert is None else _fingerprint(client_cert),
        certificate_issuer=None if client_issuer is None else _certificate(client_issuer),
    )
    with existing_database(data_dir, database_url) as database:
        issued = create_key(database, terms)
    _show(issued, as_json=as_json)


@app.command("list")
def list_(
    everything: Annotated[
        bool, typer.Option("--all", help="Also those that were revoked or have expired.")
    ] = False,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
    as_json: Json = False,
) -> None:
    """List access keys. No secret is shown: none is stored."""
    from birthmark_sma.authority.access import store as access_key_store

    with existing_database(data_dir, database_url) as database, database.read() as connection:
        now = database.clock.now()
        every = access_key_store.all_keys(connection)
    found = [key for key in every if everything or key.is_good(now)]
    if as_json:
        print_json([_as_json(key, now) for key in found])
    elif found:
        print_table(
            ["NAME", "ID", "SCOPE", "STATE", "LIMITS", "LAST USED (UTC)"],
            [
                [
                    key.name,
                    key.key_id,
                    key.scope.value,
                    key.state_at(now),
                    "; ".join(_limits(key)) or "none",
                    "never" if key.last_used_at is None else f"{key.last_used_at:%Y-%m-%d %H:%M}",
                ]
                for key in found
            ],
        )
    else:
        print_line("No access key is in force." if every else "There are no access keys.")
        print_line("To make one, type: sma keys create NAME --scope validate")


@app.command()
def revoke(
    key: NameOrId, data_dir: DataDir = None, database_url: DatabaseUrl = None, as_json: Json = False
) -> None:
    """Withdraw an access key for good."""
    from birthmark_sma.authority.access.keys import revoke_key

    with existing_database(data_dir, database_url) as database:
        revoked = revoke_key(database, key)
    if as_json:
        print_json({"name": revoked.name, "id": revoked.key_id, "state": "revoked"})
    else:
        print_line(
            f"{revoked.name} ({revoked.key_id}) is revoked, on every server within a second."
        )


@app.command()
def rotate(
    key: NameOrId,
    grace: Annotated[
        str, typer.Option(help="How long the old secret still counts: 0, 30m, 24h, 7d.")
    ] = "24h",
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
    as_json: Json = False,
) -> None:
    """Give an access key a new secret, and show it this once."""
    from birthmark_sma.authority.access.keys import rotate_key

    longer = timedelta(0) if grace == "0" else _duration(grace)
    if longer is None:
        raise typer.BadParameter(
            "it is 0, or a number with m, h, d or w: 24h", param_hint="--grace"
        )
    with existing_database(data_dir, database_url) as database:
        issued = rotate_key(database, key, longer)
    _show(issued, as_json=as_json)
    if as_json:
        return
    if longer:
        print_line(f"The old secret counts until {datetime.now(UTC) + longer:%Y-%m-%d %H:%M} UTC.")
    else:
        print_line("The old secret no longer counts.")


def _show(issued: "IssuedKey", *, as_json: bool) -> None:
    key = issued.key
    now = datetime.now(UTC)
    if as_json:
        print_json(_as_json(key, now) | {"key": issued.secret})
        return
    fields = [
        ("name", key.name),
        ("id", key.key_id),
        ("scope", key.scope.value),
        ("limits", "\n".join(_limits(key)) or "none"),
    ]
    if issued.secret is not None:
        fields.append(("key", typer.style(issued.secret, fg=typer.colors.CYAN, bold=True)))
    print_fields(fields)
    if issued.secret is not None:
        # To stderr, so that stdout has only the fields. The whole secret is printed only once.
        print_stderr(
            "\nKeep the key now: it is stored nowhere, and not shown again. Callers send it as"
        )
        print_stderr(f"  Authorization: Bearer {issued.secret[:15]}...")


def _as_json(key: "AccessKey", now: datetime) -> dict[str, Any]:
    return {
        "name": key.name,
        "id": key.key_id,
        "scope": key.scope.value,
        "state": key.state_at(now),
        "device_family": key.device_family,
        "uses": key.uses,
        "uses_allowed": key.uses_allowed,
        "disclosure": key.disclosure,
        "rate_limit": key.rate_limit,
        "certificate_sha256": key.certificate_fingerprint and key.certificate_fingerprint.hex(),
        "certificate_issuer": key.certificate_issuer,
        "created_at": key.created_at.isoformat(),
        "expires_at": key.expires_at and key.expires_at.isoformat(),
        "revoked_at": key.revoked_at and key.revoked_at.isoformat(),
        "last_used_at": key.last_used_at and key.last_used_at.isoformat(),
    }


def _limits(key: "AccessKey") -> list[str]:
    """Return the restrictions of a key, a few words each."""
    found = []
    if key.expires_at is not None:
        found.append(f"until {key.expires_at:%Y-%m-%d %H:%M} UTC")
    if key.device_family is not None:
        found.append(f"family {key.device_family}")
    if key.uses_allowed is not None:
        found.append(f"{key.uses} of {key.uses_allowed} devices used")
    if key.disclosure is not None:
        found.append(f"tells {key.disclosure}")
    if key.rate_limit is not None:
        found.append("no rate limit" if key.rate_limit == "none" else key.rate_limit)
    if key.certificate_fingerprint is not None:
        found.append(f"certificate {key.certificate_fingerprint.hex()[:16]}...")
    if key.certificate_issuer is not None:
        found.append(f"certificates of {key.certificate_issuer}")
    return found


def _one_of(kind: Any, text: str, option: str) -> Any:
    try:
        return kind(text)
    except ValueError:
        known = ", ".join(each.value for each in kind)
        raise typer.BadParameter(f"it is one of {known}", param_hint=option) from None


def _moment(text: str) -> datetime:
    """Return the time that --expires gives.

    It is a duration from now, a day (until its end in UTC) or an ISO 8601 time, which is in UTC if
    it has no zone. Raises BadParameter for anything else.
    """
    longer = _duration(text)
    if longer is not None:
        return datetime.now(UTC) + longer
    try:
        return _end_of_day(text) or _in_utc(datetime.fromisoformat(text))
    except (ValueError, OverflowError):  # OverflowError: the end of 9999-12-31 has no datetime
        raise typer.BadParameter(
            "it is a duration such as 12h or 7d, a day before 9999-12-31, or a time",
            param_hint="--expires",
        ) from None


def _end_of_day(text: str) -> datetime | None:
    try:
        day = date.fromisoformat(text)
    except ValueError:
        return None
    # The midnight after the day, so that the key is valid for the whole day.
    return datetime.combine(day + timedelta(days=1), time.min, UTC)


def _in_utc(when: datetime) -> datetime:
    return when.replace(tzinfo=UTC) if when.tzinfo is None else when.astimezone(UTC)


def _duration(text: str) -> timedelta | None:
    found = re.fullmatch(r"([1-9]\d{0,4})([mhdw])", text)
    return None if found is None else timedelta(**{_UNITS[found[2]]: int(found[1])})


def _fingerprint(path: Path) -> bytes:
    from cryptography.hazmat.primitives.hashes import SHA256

    return _certificate(path).fingerprint(SHA256())


def _certificate(path: Path) -> "Certificate":
    from cryptography import x509

    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except ValueError:
        raise typer.BadParameter(f"{path} holds no certificate in PEM") from None
