"""`sma ca`: show, list and export the CAs, and publish their CRLs. `ca_changes` replaces CAs.

Exported files have mode 0600. Private keys leave the database only encrypted under CA_PASSWORD.
"""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Option

from birthmark_sma.cli.actor import find_actor
from birthmark_sma.cli.descriptions import common_name
from birthmark_sma.cli.opening import administration, existing_database
from birthmark_sma.cli.options import Json, command
from birthmark_sma.cli.output import print_fields, print_json, print_line, print_object, print_table
from birthmark_sma.runtime.secret_files import make_private_directory, write_private_file

if TYPE_CHECKING:
    from birthmark_sma.config import Settings
    from birthmark_sma.storage.engine import Database

app = typer.Typer(no_args_is_help=True, help="Show, export and replace the CAs.")


@command(app, "ca show")
def show(settings: "Settings", as_json: Json = False) -> None:
    """Show the active intermediate and its root: names, validity and fingerprints."""
    from birthmark_sma.authority.ca.store import load_certificates
    from birthmark_sma.authority.representations.certificates import certificate_as_json
    from birthmark_sma.cli.descriptions import certificate_as_fields

    with existing_database(settings) as database:
        stored = load_certificates(database)
    loaded = {ca.role.value: ca.load() for ca in stored}
    if as_json:
        print_json({role: certificate_as_json(each) for role, each in loaded.items()})
    else:
        print_fields(
            [field for role, each in loaded.items() for field in certificate_as_fields(role, each)]
        )


@command(app, "ca list", remote=True)
def list_all(settings: "Settings", as_json: Json = False) -> None:
    """List all CA certificates: state, issuer, end, and the number of devices under each.

    The active intermediate signs new device certificates. A retiring one signs none and still
    publishes its revocation list.
    """
    from cryptography import x509

    with administration(settings) as authority:
        found = authority.list_issuers()
    if as_json:
        print_object(found)
        return
    print_table(
        ("name", "state", "signed by", "ends", "devices", "common name"),
        [
            (
                ca.name,
                ca.state,
                ca.signed_by,
                f"{ca.not_after:%Y-%m-%d}",
                f"{ca.devices:,}" if ca.role == "intermediate" else "",
                common_name(x509.load_pem_x509_certificate(ca.certificate.encode())),
            )
            for ca in found.issuers
        ],
        numbers={"devices"},
    )


@command(app, "ca export")
def export(
    settings: "Settings",
    output_dir: Annotated[
        Path, Option(help="The directory for the files. It is created if missing.")
    ],
    certificates_only: Annotated[
        bool, Option("--certificates-only", help="Leave out the encrypted keys.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Write the CA's certificates and encrypted private keys to files.

    Keys are encrypted under CA_PASSWORD, and only their owner can read the files. Existing files
    are never overwritten. Verifiers need only simulated-mfg-root-ca.crt.
    """
    from birthmark_sma.authority.ca import store as ca_store

    with existing_database(settings) as database:
        ca_store.load_certificates(database)
        with database.read() as connection:
            stored = ca_store.list_cas(connection)
        keys = {} if certificates_only else _keys(database, settings)
    make_private_directory(output_dir)
    files = {f"{_stem(ca.name)}.crt": ca.certificate.encode() for ca in stored} | keys
    for name, content in files.items():
        write_private_file(output_dir / name, content)
    if as_json:
        print_json({"files": [str(output_dir / name) for name in files]})
        return
    for name in files:
        print_line(str(output_dir / name))
    if not certificates_only and not any(_ROOT_KEY.fullmatch(name) for name in files):
        print_line("The root's key is left out: its file is not here, but in its safe place.")


@command(app, "ca publish-crl")
def publish_crl(
    settings: "Settings",
    output_dir: Annotated[
        Path | None,
        Option(help="Also write the CRLs (DER) to this directory. It is created if missing."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Publish the certificate revocation lists (CRLs) now. No server needs to run.

    A running server publishes the CRLs of intermediates by itself. To publish the root's CRL as
    well, run this command where the root's key file is.
    """
    from birthmark_sma.authority.ca.ceremony import load_root_signers
    from birthmark_sma.authority.ca.crl_publication import publish_crls
    from birthmark_sma.authority.ca.intermediate_key import open_issuers
    from birthmark_sma.authority.ca.store import load_certificates
    from birthmark_sma.authority.kek.wrapping import open_stored_secrets

    with existing_database(settings) as database:
        load_certificates(database)
        issuers = open_issuers(database, settings, open_stored_secrets(database, settings))
        # The keys of roots may be in a safe place. Then their lists stay as they are.
        root_signers = load_root_signers(settings)
        lists = publish_crls(database, issuers, root_signers, find_actor())
    if output_dir is not None:
        make_private_directory(output_dir)
        for name, crl in lists.items():
            path = output_dir / f"{_stem(name)}.crl"
            write_private_file(path, crl.der, replace=True)  # a newer list replaces the old one
    if as_json:
        print_json({name: {"number": crl.number} for name, crl in lists.items()})
        return
    print_fields([(name, f"CRL {crl.number} is published") for name, crl in lists.items()])
    if not root_signers:
        print_line(
            "The root's CRL is unchanged, because its key file is not here or CA_PASSWORD does not"
            " decrypt it."
        )


def _keys(database: "Database", settings: "Settings") -> dict[str, bytes]:
    from birthmark_sma.authority.ca.ceremony import root_key_file, root_key_files
    from birthmark_sma.authority.ca.intermediate_key import open_issuers
    from birthmark_sma.authority.ca.root_key_file import read_root_key
    from birthmark_sma.authority.kek.passphrase_file import find_passphrase
    from birthmark_sma.authority.kek.wrapping import open_stored_secrets

    issuers = open_issuers(database, settings, open_stored_secrets(database, settings))
    passphrase = find_passphrase(settings)
    keys = {
        f"{_stem(ca.name)}.key": issuer.signer.encrypted_pem(passphrase).encode()
        for ca in issuers.cas
        if (issuer := issuers.issuer(ca.name)) is not None
    }
    for path in root_key_files(settings):
        if path.exists():
            number = path.stem.removeprefix(root_key_file(settings).stem)
            content = read_root_key(path, lambda: find_passphrase(settings))
            keys[f"{_stem('root')}{number}.key"] = content
    return keys


_ROOT_KEY = re.compile(r"simulated-mfg-root-ca(-[0-9]+)?\.key")


def _stem(name: str) -> str:
    """Return the beginning of the names of a CA's files: `simulated-mfg-root-ca-2` for `root-2`."""
    kind, _, number = name.partition("-")
    suffix = f"-{number}" if number else ""
    return f"simulated-mfg-{kind}-ca{suffix}"
