"""Dashboard page "Certificates": all CAs, TLS certificate, and downloads as PEM."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from fastapi import APIRouter
from sqlalchemy import Connection
from starlette.responses import Response

from birthmark_sma.authority.authority import Authority
from birthmark_sma.authority.ca import crl_store
from birthmark_sma.authority.ca import store as ca_store
from birthmark_sma.authority.ca.issuers import OpenCa
from birthmark_sma.authority.devices import store as device_store
from birthmark_sma.errors import CrlNotPublishedError
from birthmark_sma.web.dashboard.certificate_view import CertificateView
from birthmark_sma.web.dashboard.rendering import render_page
from birthmark_sma.web.middleware.timeouts import run_with_timeout
from birthmark_sma.web.query_params import parse_name, refused
from birthmark_sma.web.server_state import ApiRequest

DOWNLOAD = "/dashboard/certificates/download"
_SECONDS = 10.0

router = APIRouter(include_in_schema=False)


@dataclass(frozen=True, slots=True)
class CaView:
    """A CA on the page: its certificate, its state, and the number of devices under it."""

    certificate: CertificateView
    role: str
    state: str
    signed_by: str
    devices: int
    has_crl: bool


@router.get("/dashboard/certificates")
async def show_certificates(request: ApiRequest) -> Response:
    """Show the certificate hierarchy with all fields of each CA certificate."""
    authority = request.server.authority
    return await render_page(
        request, "certificates.html", lambda connection: _read(connection, authority)
    )


@router.get(DOWNLOAD)
async def download(request: ApiRequest) -> Response:
    """Return a CA certificate or its newest CRL as PEM: `name` is a CA, with or without `.crl`.

    Raises CrlNotPublishedError if there is no CRL.
    """
    authority = request.server.authority
    name = parse_name(request, "name") or ""
    ca = authority.issuers.find(name.removesuffix(".crl"))
    if ca is None:
        raise refused("name is the name of a CA.")
    pem = await run_with_timeout(
        request.server.slow, lambda: _pem(authority, ca, crl=name.endswith(".crl")), _SECONDS
    )
    headers = {"Content-Disposition": f'attachment; filename="birthmark-{name}.pem"'}
    return Response(pem, headers=headers, media_type="application/x-pem-file")


def server_certificate(authority: Authority, now: datetime) -> CertificateView | None:
    """Return the TLS certificate in this server's file, or None without TLS.

    Also None if the file cannot be read. The server may still use an earlier certificate, until
    SIGHUP.
    """
    path = authority.settings.tls_cert
    if path is None:
        return None
    try:
        certificate = x509.load_pem_x509_certificates(path.read_bytes())[0]
    except (OSError, ValueError):  # being replaced, or unusable; web.transport.tls logs the error
        return None
    return CertificateView.of("server", certificate, now)


def _pem(authority: Authority, ca: OpenCa, *, crl: bool) -> bytes:
    if not crl:
        return ca.certificate.public_bytes(Encoding.PEM)
    newest = authority.served_crls.newest(ca.name)
    if newest is None:
        raise CrlNotPublishedError
    return x509.load_der_x509_crl(newest.der).public_bytes(Encoding.PEM)


def _read(connection: Connection, authority: Authority) -> dict[str, Any]:
    now = authority.database.clock.now()
    devices = ca_store.count_devices_under(connection)
    return {
        "tree": [
            CertificateView.of("root", authority.root, now),
            CertificateView.of("intermediate", authority.issuer.certificate, now),
        ],
        "authorities": [
            CaView(
                CertificateView.of(ca.name, ca.certificate, now),
                ca.stored.role.value,
                ca.state_at(now).value,
                ca.stored.issuer,
                devices.get(ca.name, 0),
                has_crl=crl_store.find_newest_number(connection, ca.name) is not None,
            )
            for ca in authority.issuers.cas
        ],
        "server": server_certificate(authority, now),
        "devices": device_store.count_devices(connection),
        "out_of_order": device_store.count_out_of_order(connection),
        "ceremony": ca_store.ceremony_time(connection),
    }
