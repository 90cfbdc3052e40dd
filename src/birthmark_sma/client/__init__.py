"""Library for aggregation servers: verify bundles, and validate their camera tokens.

    with AuthorityClient("https://sma.example.org", access_key="sma_...") as authority:
        bundle = verify_bundle(received, root=pinned_root, now=datetime.now(UTC))
        match authority.validate_bundle(bundle):
            case Pass(): ...
            case Fail(): ...
            case Indeterminate(): ...  # no verdict: keep it and ask again, never reject

`AsyncAuthorityClient` is the same for asyncio. `retry` is the pure core: it decides when to send,
wait and give up. `async_client` carries out its steps; `sync_client` runs `async_client` in a
thread. This package must never import the authority. The guide is
docs/integrate/aggregation-server-python.md.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from birthmark_sma.client.options import Options
from birthmark_sma.client.outcome import Cause, Fail, Indeterminate, Outcome, Pass
from birthmark_sma.errors import (
    BirthmarkError,
    BundleCertificateError,
    BundleError,
    BundleSignatureError,
    BundleTimeError,
    ClientMisuseError,
    ConfigurationError,
    DeviceRevokedError,
    MalformedBundleError,
    MalformedCameraTokenError,
    RevocationUnknownError,
    TooManyPendingError,
)

if TYPE_CHECKING:
    from birthmark_sma.client.async_client import AsyncAuthorityClient
    from birthmark_sma.client.bundle_verification import VerifiedBundle, verify_bundle
    from birthmark_sma.client.crls.cache import AsyncCrlCache, CachedCrl, CrlCache
    from birthmark_sma.client.crls.issuers import IssuerCrls
    from birthmark_sma.client.pending import PendingBundles
    from birthmark_sma.client.revocation import RevocationList
    from birthmark_sma.client.sync_client import AuthorityClient
    from birthmark_sma.protocol.bundle import MAX_BUNDLE_BYTES, Bundle, parse_bundle
    from birthmark_sma.protocol.camera_token import CameraToken

__all__ = [
    "MAX_BUNDLE_BYTES",
    "AsyncAuthorityClient",
    "AsyncCrlCache",
    "AuthorityClient",
    "BirthmarkError",
    "Bundle",
    "BundleCertificateError",
    "BundleError",
    "BundleSignatureError",
    "BundleTimeError",
    "CachedCrl",
    "CameraToken",
    "Cause",
    "ClientMisuseError",
    "ConfigurationError",
    "CrlCache",
    "DeviceRevokedError",
    "Fail",
    "Indeterminate",
    "IssuerCrls",
    "MalformedBundleError",
    "MalformedCameraTokenError",
    "Options",
    "Outcome",
    "Pass",
    "PendingBundles",
    "RevocationList",
    "RevocationUnknownError",
    "TooManyPendingError",
    "VerifiedBundle",
    "parse_bundle",
    "verify_bundle",
]

# The module of each name that needs HTTP or cryptography. The first use of the name imports it
# (PEP 562).
_MODULES = {
    "AsyncAuthorityClient": "client.async_client",
    "AsyncCrlCache": "client.crls.cache",
    "AuthorityClient": "client.sync_client",
    "Bundle": "protocol.bundle",
    "CachedCrl": "client.crls.cache",
    "CameraToken": "protocol.camera_token",
    "CrlCache": "client.crls.cache",
    "IssuerCrls": "client.crls.issuers",
    "MAX_BUNDLE_BYTES": "protocol.bundle",
    "PendingBundles": "client.pending",
    "RevocationList": "client.revocation",
    "VerifiedBundle": "client.bundle_verification",
    "parse_bundle": "protocol.bundle",
    "verify_bundle": "client.bundle_verification",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found: object = getattr(import_module(f"birthmark_sma.{_MODULES[name]}"), name)
    # Store it, so that the next access does not call this function.
    globals()[name] = found
    return found
