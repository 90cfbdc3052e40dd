"""Verify a certification path from a device certificate to the pinned root (RFC 5280, section 6).

`client.bundle_verification` and `device.provisioning` call `verify_path`. The steps:

1. the signature, name chaining, validity and CA constraints of every certificate up to the root;
2. the leaf's profile: it is no CA, may sign, and is for client authentication;
3. the device serial that the leaf's URN names.

The path must be exactly the given one: each certificate is issued by the next one, and the last one
by the root. The module never searches for another path, so callers may rely on the given
intermediate being the issuer.
"""

from collections.abc import Collection, Sequence
from contextlib import suppress
from datetime import datetime
from itertools import pairwise

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.x509 import verification
from cryptography.x509.oid import ExtendedKeyUsageOID

from birthmark_sma.errors import KeyRefusedError, PathRefusedError
from birthmark_sma.pki.keys.ca_keys import CaKeyType, Signer, generate
from birthmark_sma.pki.keys.key_policy import check_key
from birthmark_sma.pki.names import device_serial_of, same_name

_NOT_CHAINED = "The certificate does not chain to the trusted root"


def verify_path(
    leaf: x509.Certificate,
    intermediates: Sequence[x509.Certificate],
    *,
    root: x509.Certificate,
    now: datetime,
) -> str:
    """Return the device serial of a leaf that chains to `root` at the time `now`.

    Only `root` is trusted. It must not be among the intermediates.

    Raises PathRefusedError with the reason.
    """
    try:
        # Steps 1 and 2. The library does not check the leaf's own key, so `check_key` does.
        _verify_issuers(leaf, intermediates, root, now)
        check_key(leaf.public_key())
        # Step 3.
        device_serial = device_serial_of(leaf)
    except (
        verification.VerificationError,
        x509.UnsupportedGeneralNameType,
        UnsupportedAlgorithm,
        InvalidSignature,
        KeyRefusedError,
        ValueError,
        TypeError,  # raised late for some names, such as one that is a bit string
    ) as error:
        raise PathRefusedError(f"{_NOT_CHAINED}: {_on_one_line(error)}") from None
    if device_serial is None:
        raise PathRefusedError("The certificate names no device.")
    return device_serial


def find_issuing_root(
    certificate: x509.Certificate, roots: Collection[x509.Certificate]
) -> x509.Certificate:
    """Return the root that signed a certificate, so that `verify_path` can be called with it.

    If none did, return one with the name of the certificate's issuer, or else any: `verify_path`
    then gives the reason. Raises PathRefusedError without roots.
    """
    if len(roots) > 1:
        for root in roots:
            with suppress(ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
                certificate.verify_directly_issued_by(root)
                return root
        for root in roots:
            # The library compares the bytes of names, which may differ for equal names.
            with suppress(ValueError, TypeError):
                if same_name(certificate.issuer, root.subject):
                    return root
    for root in roots:
        return root
    raise PathRefusedError("No root is trusted.")


def _verify_issuers(
    leaf: x509.Certificate,
    issuers: Sequence[x509.Certificate],
    root: x509.Certificate,
    now: datetime,
) -> None:
    """Verify the path with the library. If that fails, retry with names in one encoding.

    Raises VerificationError, or PathRefusedError if names do not chain or the verified path
    differs.
    """
    try:
        verified = _verifier(root, now).verify(leaf, list(issuers)).chain
    except verification.VerificationError:
        # First for a better error: the library does not tell which names do not chain.
        _check_names([leaf, *issuers, root])
        if len(issuers) != 1 or not _differ_in_spelling(leaf, issuers[0], root):
            raise
        intermediate, root = _in_one_spelling(leaf, issuers[0], root)
        issuers = [intermediate]
        verified = _verifier(root, now).verify(leaf, issuers).chain
    # The library may have found a path without the given intermediate.
    if verified != [leaf, *issuers, root]:
        raise PathRefusedError(f"{_NOT_CHAINED} through the given certificates.")


def _verifier(root: x509.Certificate, now: datetime) -> verification.ClientVerifier:
    return (
        verification.PolicyBuilder()
        .store(verification.Store([root]))
        .time(now)
        .extension_policies(
            ca_policy=verification.ExtensionPolicy.webpki_defaults_ca(), ee_policy=_leaf_policy()
        )
        .build_client_verifier()
    )


def _check_names(path: Sequence[x509.Certificate]) -> None:
    """Raise PathRefusedError if a certificate's issuer is not the next certificate's subject."""
    for certificate, issuer in pairwise(path):
        if same_name(certificate.issuer, issuer.subject):
            continue
        if same_name(issuer.issuer, certificate.subject):
            raise PathRefusedError(
                "The certificates are in the wrong order: send the device's certificate first, then"
                " the intermediate's."
            )
        # An attacker may choose the names: `!r` keeps them on one line, and distinct from our text.
        raise PathRefusedError(
            f"{_NOT_CHAINED}: its issuer is {certificate.issuer.rfc4514_string()!r}, and the next"
            f" certificate is that of {issuer.subject.rfc4514_string()!r}."
        )


# --- names in two encodings: the library compares bytes, RFC 5280, section 7.1, does not


def _differ_in_spelling(
    leaf: x509.Certificate, intermediate: x509.Certificate, root: x509.Certificate
) -> bool:
    return any(
        child.issuer.public_bytes() != issuer.subject.public_bytes()
        for child, issuer in ((leaf, intermediate), (intermediate, root))
    )


def _in_one_spelling(
    leaf: x509.Certificate, intermediate: x509.Certificate, root: x509.Certificate
) -> tuple[x509.Certificate, x509.Certificate]:
    """Return copies of the intermediate and the root with the names as their children encode them.

    The library then compares equal bytes. The root's signature does not fit the copies, so this
    function verifies the intermediate's signature itself, and an ephemeral key signs both copies.
    The library still verifies everything else of the path.
    """
    signer = generate(CaKeyType.EC_P256)
    intermediate.verify_directly_issued_by(
        _copy(root, intermediate.issuer, root.public_key(), signer)
    )
    # `verify_directly_issued_by` accepts SHA-1, which the library's path verification refuses.
    if not isinstance(
        intermediate.signature_hash_algorithm, hashes.SHA256 | hashes.SHA384 | hashes.SHA512
    ):
        raise ValueError("the intermediate is signed over a broken hash")
    return (
        _copy(intermediate, leaf.issuer, intermediate.public_key(), signer),
        _copy(root, intermediate.issuer, signer.public_key, signer),
    )


def _copy(
    original: x509.Certificate,
    subject: x509.Name,
    public_key: CertificatePublicKeyTypes,
    signer: Signer,
) -> x509.Certificate:
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(original.issuer)
        .public_key(public_key)
        .serial_number(original.serial_number)
        .not_valid_before(original.not_valid_before_utc)
        .not_valid_after(original.not_valid_after_utc)
    )
    for extension in original.extensions:
        builder = builder.add_extension(extension.value, critical=extension.critical)
    return builder.sign(signer.key, signer.hash_algorithm)


def _on_one_line(error: Exception) -> str:
    """Return the error's text with unprintable characters replaced.

    The text may quote names from the certificates, which an attacker can choose.
    """
    return "".join(each if each.isprintable() else "?" for each in str(error))


def _leaf_policy() -> verification.ExtensionPolicy:
    """Return the policy for device certificates: no CA, may sign, for clients, has a name."""
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
