"""`sma keys`: create, list, revoke and rotate access keys.

The rules are in `authority/access/keys.py`. A secret is printed once, by `create` and `rotate`; it
must never be stored or logged.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from typer import Argument, Option

from birthmark_sma.cli.durations import parse_duration
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
    from cryptography.x509 import Certificate

    from birthmark_sma.authority.access.keys import KeyTerms
    from birthmark_sma.config import Settings
    from birthmark_sma.web.api.administration.responses import AccessKeyResponse, IssuedKeyResponse

app = typer.Typer(
    no_args_is_help=True,
    help="Create, list, revoke and rotate access keys.\n\nEvery running server applies changes"
    " within a second.",
)

NameOrId = Annotated[str, Argument(help="The key's name or id.")]

_Text = TypeVar("_Text", str, Path)
_Value = TypeVar("_Value")


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyOptions:
    """The options of a new access key: its scope and its limits."""

    scope: Annotated[
        str,
        Option(
            help="The requests that the key allows: provision, validate, or a role. The roles are"
            " monitor, read, operate and admin. Each includes those before it."
        ),
    ]
    expires: Annotated[
        str | None,
        Option(help="The end of its validity: 12h, 7d, 2026-12-31, 2026-12-31T18:00+01:00."),
    ] = None
    family: Annotated[
        str | None, Option(help="With provision: the only family of devices that it may provision.")
    ] = None
    uses: Annotated[
        int | None,
        Option(min=1, max=2**31 - 1, help="With provision: how many devices it may provision."),
    ] = None
    may_re_enrol: Annotated[
        bool,
        Option(
            "--may-re-enrol",
            help="With provision: also re-enrol devices that exist, of its family or, without one,"
            " of any. Each counts as a use.",
        ),
    ] = False
    disclosure: Annotated[
        str | None,
        Option(
            help="With validate: the information about the device in a PASS: serial, family or"
            " none. Default: the server's setting. With read: family or none leave serials out of"
            " exports."
        ),
    ] = None
    rate: Annotated[
        str | None,
        Option(
            help='The rate limit of its camera tokens, devices or requests, such as "100/second",'
            ' or "none". Default: the server\'s setting.'
        ),
    ] = None
    client_cert: Annotated[
        Path | None,
        Option(help="A client certificate (PEM) that callers show in place of the key."),
    ] = None
    client_issuer: Annotated[
        Path | None,
        Option(help="A CA (PEM). Callers show any of its client certificates in place of the key."),
    ] = None

    def terms(self, name: str) -> "KeyTerms":
        """Return the terms of the key. Raises BadParameter for a value that cannot be used."""
        from birthmark_sma.authority.access.keys import KeyTerms
        from birthmark_sma.authority.access.store import KeyScope
        from birthmark_sma.config import Disclosure

        if self.client_cert is not None and self.client_issuer is not None:
            raise typer.BadParameter("Give --client-cert or --client-issuer, but not both.")
        return KeyTerms(
            name=name,
            scope=one_of(KeyScope, self.scope, "--scope"),
            expires_at=_given(self.expires, _moment),
            device_family=self.family,
            uses_allowed=self.uses,
            may_re_enrol=self.may_re_enrol,
            disclosure=_given(
                self.disclosure, lambda text: str(one_of(Disclosure, text, "--disclosure").value)
            ),
            rate_limit=self.rate,
            certificate_fingerprint=_given(self.client_cert, _fingerprint),
            certificate_issuer=_given(self.client_issuer, _certificate),
        )


@command(app, "keys create", remote=True)
def create(
    settings: "Settings",
    name: Annotated[str, Argument(help="The name of the key's holder, such as newsroom-1.")],
    options: KeyOptions,
    as_json: Json = False,
) -> None:
    """Create an access key. Its secret is shown only once.

    \b
    An aggregation server:   sma keys create newsroom-1 --scope validate --disclosure family
    One camera:              sma keys create desk-7 --scope provision --uses 1 --expires 2d
    A batch of phones:       sma keys create friday --scope provision --family Android --uses 500
    Prometheus:              sma keys create prometheus --scope monitor
    """
    from birthmark_sma.cli.administration.interface import NewKey

    new = NewKey(
        options.terms(name),
        _given(options.client_cert, _pem),
        _given(options.client_issuer, _pem),
    )
    with administration(settings) as authority:
        issued = authority.create_key(new)
    _print_issued(issued, as_json=as_json)


@command(app, "keys list", remote=True)
def list_(
    settings: "Settings",
    everything: Annotated[
        bool, Option("--all", help="Also list revoked and expired keys.")
    ] = False,
    as_json: Json = False,
) -> None:
    """List access keys. Secrets cannot be shown, because they are not stored."""
    with administration(settings) as authority:
        page = authority.list_keys(everything=everything)
        has_others = not (page.keys or everything) and bool(
            authority.list_keys(everything=True).keys
        )
    if as_json:
        print_object(page)
    elif page.keys:
        rows = []
        for key in page.keys:
            used = f"{key.last_used_at:%Y-%m-%d %H:%M}" if key.last_used_at else "never"
            limits = "; ".join(_limits(key)) or "none"
            rows.append([key.name, key.id, key.scope, key.state, limits, used])
        print_table(["NAME", "ID", "SCOPE", "STATE", "LIMITS", "LAST USED (UTC)"], rows)
    else:
        print_line("No access key is valid." if has_others else "There are no access keys.")
        print_line("To create one, type: sma keys create NAME --scope validate")


@command(app, "keys revoke", remote=True)
def revoke(settings: "Settings", key: NameOrId, as_json: Json = False) -> None:
    """Revoke an access key for ever."""
    with administration(settings) as authority:
        revoked = authority.revoke_key(key)
    if as_json:
        print_object(revoked)
    else:
        print_line(f"{revoked.name} ({revoked.id}) is revoked, on every server within a second.")


@command(app, "keys rotate", remote=True)
def rotate(
    settings: "Settings",
    key: NameOrId,
    grace: Annotated[
        str, Option(help="The time for which the old secret stays valid: 0, 30m, 24h or 7d.")
    ] = "24h",
    as_json: Json = False,
) -> None:
    """Create a new secret for an access key. It is shown only once."""
    longer = parse_duration(grace, "--grace", may_be_zero=True)
    with administration(settings) as authority:
        issued = authority.rotate_key(key, longer)
    _print_issued(issued, as_json=as_json)
    if not as_json:
        until = f"valid until {datetime.now(UTC) + longer:%Y-%m-%d %H:%M} UTC"
        print_line(f"The old secret is {until if longer else 'no longer valid'}.")


def _print_issued(issued: "IssuedKeyResponse", *, as_json: bool) -> None:
    if as_json:
        print_object(issued)
        return
    fields = [
        ("name", issued.name),
        ("id", issued.id),
        ("scope", issued.scope),
        ("limits", "\n".join(_limits(issued)) or "none"),
    ]
    if issued.key is not None:
        fields.append(("key", typer.style(issued.key, fg=typer.colors.CYAN, bold=True)))
    print_fields(fields)
    if issued.key is not None:
        # To stderr, so that stdout has only the fields. The whole secret is printed only once.
        print_stderr(
            "\nCopy the key now. It is not stored, and will not be shown again. Callers send it as"
        )
        print_stderr(f"  Authorization: Bearer {issued.key[:15]}...")


def _limits(key: "AccessKeyResponse") -> list[str]:
    """Return the restrictions of a key, a few words each."""
    fingerprint, rate = key.certificate_sha256, key.rate_limit
    found = (
        key.expires_at and f"until {key.expires_at:%Y-%m-%d %H:%M} UTC",
        key.device_family and f"family {key.device_family}",
        key.uses_allowed is not None
        and f"{key.uses:,} of {counted(key.uses_allowed, 'device')} used",
        key.may_re_enrol and "may re-enrol devices",
        key.disclosure and f"discloses {key.disclosure}",
        "no rate limit" if rate == "none" else rate,
        fingerprint and f"certificate {fingerprint[:16]}...",
        key.certificate_issuer and f"certificates of {key.certificate_issuer}",
    )
    return [each for each in found if each]


def _given(value: _Text | None, convert: Callable[[_Text], _Value]) -> _Value | None:
    return None if value is None else convert(value)


def one_of(kind: Any, text: str, option: str) -> Any:
    """Return the member of an enum that an option names. Raises BadParameter."""
    try:
        return kind(text)
    except ValueError:
        known = ", ".join(each.value for each in kind)
        raise typer.BadParameter(f"Choose one of: {known}.", param_hint=option) from None


def _moment(text: str) -> datetime:
    """Return the time that --expires gives.

    It is a duration from now, a day (until its end in UTC) or an ISO 8601 time, which is in UTC if
    it has no zone. Raises BadParameter for anything else.
    """
    try:
        return _end_of_day(text) or _in_utc(datetime.fromisoformat(text))
    except (ValueError, OverflowError):  # OverflowError: the end of 9999-12-31 has no datetime
        pass
    try:
        return datetime.now(UTC) + parse_duration(text, "--expires")
    except typer.BadParameter as refused:
        refused.message += " Or give a day before 9999-12-31, or a time: 2026-12-31T18:00+01:00."
        raise


def _end_of_day(text: str) -> datetime | None:
    try:
        day = date.fromisoformat(text)
    except ValueError:
        return None
    # The midnight after the day, so that the key is valid for the whole day.
    return datetime.combine(day + timedelta(days=1), time.min, UTC)


def _in_utc(when: datetime) -> datetime:
    return when.replace(tzinfo=UTC) if when.tzinfo is None else when.astimezone(UTC)


def _fingerprint(path: Path) -> bytes:
    from cryptography.hazmat.primitives.hashes import SHA256

    return _certificate(path).fingerprint(SHA256())


def _pem(path: Path) -> str:
    from cryptography.hazmat.primitives.serialization import Encoding

    return _certificate(path).public_bytes(Encoding.PEM).decode()


def _certificate(path: Path) -> "Certificate":
    from cryptography import x509

    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except (ValueError, x509.InvalidVersion):
        raise typer.BadParameter(f"{path} holds no certificate in PEM.") from None
