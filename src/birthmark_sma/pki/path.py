"""Verify a certification path from a device certificate to the pinned root (RFC 5280, section 6).

What an aggregation server does before it asks about a camera token. The steps:

1. every certificate's signature, name chaining, validity and CA constraints, up to the root given;
2. the leaf's profile: it is no CA, may sign, and is for client authentication;
3. the device serial that the leaf's URN names.
"""

from collections.abc import Sequence
from datetime import datetime

from cryptography import x509
from cryptography.x509 import verification

from birthmark_sma.errors import PathRefusedError
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
        .build_client_verifier()
    )
    try:
        # Steps 1 and 2: the client policy demands CA:FALSE, digitalSignature where key usage is
        # present, and the EKU clientAuth.
        verifier.verify(leaf, list(intermediates))
    except (verification.VerificationError, x509.UnsupportedGeneralNameType, ValueError) as error:
        raise PathRefusedError(
            f"The certificate does not chain to the trusted root: {error}"
        ) from None
    # Step 3.
    device_serial = device_serial_of(leaf)
    if device_serial is None:
        raise PathRefusedError("The certificate names no device.")
    return device_serial
