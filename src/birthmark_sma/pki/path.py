"""Verify a certification path from a device certificate to the pinned root (RFC 5280, section 6).

What an aggregation server does before it asks about a camera token. The steps:

1. every certificate's signature, name chaining, validity and CA constraints, up to the root given;
2. the leaf's profile: it is no CA, may sign, and is for client authentication;
3. the device serial that the leaf's URN names.
"""

from collections.abc import Sequence
from datetime import datetime

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.x509 import verification
from cryptography.x509.oid import ExtendedKeyUsageOID

from birthmark_sma.errors import KeyRefusedError, PathRefusedError
from birthmark_sma.pki.key_policy import check_key
from birthmark_sma.pki.names import device_serial_of


def verify_path(
    leaf: x509.Certificate,
    intermediates: Sequence[x509.Certificate],
    *,
    root: x509.Certificate,
    now: datetime,
) -> str:
    """Return the device serial of a leaf that chains to `root` at the time `now`.

    Only `root` is trusted: a root that the device sends along proves nothing. Raises
    PathRefusedError with the reason.
    """
    verifier = (
        verification.PolicyBuilder()
        .store(verification.Store([root]))
        .time(now)
        .extension_policies(
            ca_policy=verification.ExtensionPolicy.webpki_defaults_ca(), ee_policy=_leaf_policy()
        )
        .build_client_verifier()
    )
    try:
        # Steps 1 and 2. The library does not judge the leaf's own key: the key policy does.
        verifier.verify(leaf, list(intermediates))
        check_key(leaf.public_key())
        # Step 3.
        device_serial = device_serial_of(leaf)
    except (
        verification.VerificationError,
        x509.UnsupportedGeneralNameType,
        UnsupportedAlgorithm,
        KeyRefusedError,
        ValueError,
        TypeError,  # of a name that the library reads late, such as one that is a bit string
    ) as error:
        raise PathRefusedError(
            f"The certificate does not chain to the trusted root: {_on_one_line(error)}"
        ) from None
    if device_serial is None:
        raise PathRefusedError("The certificate names no device.")
    return device_serial


def _on_one_line(error: Exception) -> str:
    """Return what an error says. It may quote names, which anybody may have chosen."""
    return "".join(each if each.isprintable() else "?" for each in str(error))


def _leaf_policy() -> verification.ExtensionPolicy:
    """What a device certificate must say: no CA, may sign, for clients, and a name."""
    return (
        verification.ExtensionPolicy.webpki_defaults_ee()
        .require_present(x509.BasicConstraints, verification.Criticality.CRITICAL, _no_ca)
        .require_present(x509.KeyUsage, verification.Criticality.CRITICAL, _signs)
        .require_present(x509.ExtendedKeyUsage, verification.Criticality.AGNOSTIC, _for_clients)
        .require_present(x509.SubjectAlternativeName, verification.Criticality.AGNOSTIC, None)
    )


def _no_ca(_: object, __: x509.Certificate, constraints: x509.BasicConstraints) -> None:
    if constraints.ca:
        raise ValueError("the leaf is a CA")


def _signs(_: object, __: x509.Certificate, usage: x509.KeyUsage) -> None:
    if not usage.digital_signature:
        raise ValueError("the leaf's key may not sign")


def _for_clients(_: object, __: x509.Certificate, usage: x509.ExtendedKeyUsage) -> None:
    if ExtendedKeyUsageOID.CLIENT_AUTH not in usage:
        raise ValueError("the leaf is not for client authentication")
