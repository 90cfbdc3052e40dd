"""Dashboard page "Certificates": root, intermediate, TLS certificate, and downloads as PEM."""

from datetime import datetime
from enum import StrEnum
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from fastapi import APIRouter
from sqlalchemy import Connection
from starlette.responses import Response

from birthmark_sma.authority.authority import Authority
from birthmark_sma.authority.ca import store as ca_store
from birthmark_sma.authority.ca.crl_store import INTERMEDIATE
from birthmark_sma.authority.devices import store as device_store
from birthmark_sma.errors import CrlNotPublishedError
from birthmark_sma.web.dashboard.certificate_view import CertificateView
from birthmark_sma.web.dashboard.query_params import parse_choice, refused
from birthmark_sma.web.dashboard.rendering import render_page
from birthmark_sma.web.middleware.timeouts import run_with_timeout
from birthmark_sma.web.server_state import ApiRequest

DOWNLOAD = "/dashboard/certificates/download"
_SECONDS = 10.0

router = APIRouter(include_in_schema=False)


class Item(StrEnum):
    """The files that can be downloaded."""

    ROOT = "root"
    INTERMEDIATE = "intermediate"
    CRL = "crl"


@router.get("/dashboard/certificates")
async def show_certificates(request: ApiRequest) -> Response:
    """Show the certificate hierarchy with all fields of both CA certificates."""
    authority = request.server.authority
    return await render_page(
        request, "certificates.html", lambda connection: _read(connection, authority)
    )


@router.get(DOWNLOAD)
async def download(request: ApiRequest) -> Response:
    """Return a CA certificate or the newest CRL as PEM.

    Raises CrlNotPublishedError if there is no CRL.
    """
    item = parse_choice(request, "name", Item)
    if item is None:
        raise refused("name says what.")
    authority = request.server.authority
    pem = await run_with_timeout(request.server.slow, lambda: _pem(authority, item), _SECONDS)
    headers = {"Content-Disposition": f'attachment; filename="birthmark-{item.value}.pem"'}
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


def _pem(authority: Authority, item: Item) -> bytes:
    match item:
        case Item.ROOT:
            return authority.root.public_bytes(Encoding.PEM)
        case Item.INTERMEDIATE:
            return authority.issuer.certificate.public_bytes(Encoding.PEM)
        case Item.CRL:
            crl = authority.served_crls.newest(INTERMEDIATE)
            if crl is None:
                raise CrlNotPublishedError
            return x509.load_der_x509_crl(crl.der).public_bytes(Encoding.PEM)


def _read(connection: Connection, authority: Authority) -> dict[str, Any]:
    now = authority.database.clock.now()
    return {
        "authorities": [
            CertificateView.of("root", authority.root, now),
            CertificateView.of("intermediate", authority.issuer.certificate, now),
        ],
        "server": server_certificate(authority, now),
        "devices": device_store.count_devices(connection),
        "revoked": ca_store.count_revocations(connection),
        "ceremony": ca_store.ceremony_time(connection),
    }
