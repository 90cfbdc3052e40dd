"""`IssuerCrls` with a real authority that has replaced its intermediate."""

from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509

from birthmark_sma.client import IssuerCrls, verify_bundle
from birthmark_sma.errors import DeviceRevokedError, RevocationUnknownError
from birthmark_sma.protocol.bundle import Bundle
from tests.support.cameras.bundles import bundle_of
from tests.support.cameras.camera import new_key, provision_body, public_pem
from tests.support.devices.acts import revoke_device
from tests.support.programs.commands import sma
from tests.support.programs.running import Running, start, wait_until


def act(running: Running, *arguments: str) -> None:
    """Run a command of `sma ca` beside the server."""
    ran = sma("ca", *arguments, "--yes", environ=running.environ)
    assert ran.returncode == 0, ran.stderr


def test_lists_of_two_issuers(tmp_path: Path) -> None:
    """Each is fetched from its own address, at the server that was configured."""
    running = start(tmp_path / "data", "sqlite:", SMA_PUBLIC_URL="https://elsewhere.example")
    with running.server, running.client() as client:

        def bundle(serial: str) -> Bundle:
            key = new_key()
            body = provision_body(serial, device_public_key=public_pem(key))
            response = client.post("/api/v1/devices/provision", json=body).json()
            leaf, issuer = (
                x509.load_pem_x509_certificate(pem.encode())
                for pem in (response["device_certificate"], response["certificate_chain"][0])
            )
            return bundle_of(leaf, issuer, key, captured_at=datetime.now(UTC))

        root = x509.load_der_x509_certificate(client.get("/pki/root.crt").content)
        lists = IssuerCrls(str(client.base_url), root_lists={"/pki/root.crl": root}, refresh=0.01)

        def verify(each: Bundle) -> str:
            now = datetime.now(UTC)
            return verify_bundle(each, root=root, now=now, crl=lists).device_serial

        old = bundle("old")
        act(running, "rotate")
        new, gone = bundle("new"), bundle("gone")
        wait_until(lambda: client.get("/pki/ca/intermediate-2.crl").status_code == 200, 15)
        assert [verify(each) for each in (old, new, gone)] == ["old", "new", "gone"]
        with running.database() as database:
            revoke_device(database, "gone", "privilege_withdrawn")
        wait_until(lambda: refuses(verify, gone), 15)
        assert [verify(each) for each in (old, new)] == ["old", "new"]
        act(running, "compromised", "intermediate")
        wait_until(lambda: refuses(verify, old), 15)
        assert verify(new) == "new"
        stranger = IssuerCrls(str(client.base_url), root_lists={"/pki/ca/none.crl": root})
        with pytest.raises(RevocationUnknownError):
            verify_bundle(new, root=root, now=datetime.now(UTC), crl=stranger)


def refuses(verify: object, bundle: Bundle) -> bool:
    """Return whether a bundle is refused as revoked."""
    try:
        verify(bundle)  # type: ignore[operator]
    except DeviceRevokedError:
        return True
    return False
