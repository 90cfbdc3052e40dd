"""`sma ca`: show and export the root and intermediate CA, and publish their CRLs.

Exported files have mode 0600. Private keys leave the database only encrypted under CA_PASSWORD.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Option

from birthmark_sma.cli.opening import existing_database
from birthmark_sma.cli.options import Json, command
from birthmark_sma.cli.output import print_fields, print_json, print_line
from birthmark_sma.runtime.secret_files import make_private_directory, write_private_file

if TYPE_CHECKING:
    from birthmark_sma.config import Settings
    from birthmark_sma.storage.engine import Database

app = typer.Typer(no_args_is_help=True, help="Show and export the root and intermediate CA.")

_FILE_STEM = {"root": "simulated-mfg-root-ca", "intermediate": "simulated-mfg-intermediate-ca"}


@command(app, "ca show")
def show(settings: "Settings", as_json: Json = False) -> None:
    """Show both certificates: names, validity and fingerprints."""
    from cryptography import x509

    from birthmark_sma.authority.ca.store import load_certificates
    from birthmark_sma.cli.descriptions import certificate_as_fields, certificate_as_json

    with existing_database(settings) as database:
        stored = load_certificates(database)
    loaded = {ca.name: x509.load_pem_x509_certificate(ca.certificate.encode()) for ca in stored}
    if as_json:
        print_json({name: certificate_as_json(each) for name, each in loaded.items()})
    else:
        print_fields(
            [field for name, each in loaded.items() for field in certificate_as_fields(name, each)]
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
    from birthmark_sma.authority.ca.store import load_certificates

    with existing_database(settings) as database:
        stored = load_certificates(database)
        keys = {} if certificates_only else _keys(database, settings)
    make_private_directory(output_dir)
    files = {f"{_FILE_STEM[ca.name]}.crt": ca.certificate.encode() for ca in stored} | keys
    for name, content in files.items():
        write_private_file(output_dir / name, content)
    if as_json:
        print_json({"files": [str(output_dir / name) for name in files]})
        return
    for name in files:
        print_line(str(output_dir / name))
    if not certificates_only and "simulated-mfg-root-ca.key" not in files:
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

    A running server publishes the intermediate's CRL by itself. To publish the root's CRL as well,
    run this command where the root's key file is.
    """
    from birthmark_sma.authority.ca.ceremony import load_root_signer
    from birthmark_sma.authority.ca.crl_publication import publish_crls
    from birthmark_sma.authority.ca.intermediate_key import open_signer
    from birthmark_sma.authority.ca.store import load_certificates
    from birthmark_sma.authority.kek.wrapping import open_stored_secrets

    with existing_database(settings) as database:
        load_certificates(database)
        # The root's key may be in a safe place. Then `publish_crls` publishes only one list.
        signer = open_signer(database, settings, open_stored_secrets(database, settings))
        root_signer = load_root_signer(settings)
        lists = publish_crls(database, signer, root_signer)
    if output_dir is not None:
        make_private_directory(output_dir)
        for name, crl in lists.items():
            path = output_dir / f"{_FILE_STEM[name]}.crl"
            write_private_file(path, crl.der, replace=True)  # a newer list replaces the old one
    if as_json:
        print_json({name: {"number": crl.number} for name, crl in lists.items()})
        return
    print_fields([(name, f"CRL {crl.number} is published") for name, crl in lists.items()])
    if root_signer is None:
        print_line(
            "The root's CRL is unchanged, because its key file is not here or CA_PASSWORD does not"
            " decrypt it."
        )


def _keys(database: "Database", settings: "Settings") -> dict[str, bytes]:
    from birthmark_sma.authority.ca.ceremony import root_key_file
    from birthmark_sma.authority.ca.intermediate_key import open_signer
    from birthmark_sma.authority.ca.root_key_file import read_root_key
    from birthmark_sma.authority.kek.passphrase_file import find_passphrase
    from birthmark_sma.authority.kek.wrapping import open_stored_secrets

    signer = open_signer(database, settings, open_stored_secrets(database, settings))
    pem = signer.encrypted_pem(find_passphrase(settings))
    keys = {f"{_FILE_STEM['intermediate']}.key": pem.encode()}
    root_key = root_key_file(settings)
    if root_key.exists():
        keys[f"{_FILE_STEM['root']}.key"] = read_root_key(
            root_key, lambda: find_passphrase(settings)
        )
    return keys
