"""Bind a recipient key to a device: the key to which the authority seals the device's secrets.

The device puts the digest of its recipient key into its CSR, as a URI in the requested
subjectAltName. The CSR's signature covers it, so an attacker who intercepts the request cannot
replace or remove the recipient key.
"""

import re

from cryptography import x509
from cryptography.x509.oid import NameOID

from birthmark_sma.errors import CsrRefusedError
from birthmark_sma.pki.keys.key_policy import KeyEncryptionKey, fingerprint
from birthmark_sma.pki.names import RECIPIENT_KEY_URN_PREFIX

RECIPIENT_URN_PREFIX = f"{RECIPIENT_KEY_URN_PREFIX}sha-256:"
_DIGEST = re.compile(r"[0-9a-fA-F]{64}")


def recipient_urn(key: KeyEncryptionKey) -> str:
    """Return the URI for a CSR: the prefix, then SHA-256 of the DER SubjectPublicKeyInfo in hex."""
    return RECIPIENT_URN_PREFIX + fingerprint(key).hex()


def check_recipient(
    request: x509.CertificateSigningRequest | None, key: KeyEncryptionKey | None
) -> None:
    """Raise CsrRefusedError unless the CSR names exactly this recipient key, or none if it is None.

    The CSR must already be verified, including that every common name in it is the device's serial.
    """
    if request is None:
        if key is not None:
            raise CsrRefusedError(
                "A recipient key needs a CSR in place of device_public_key: it proves that the"
                " recipient key is the device's."
            )
        return
    named = _requested(request)
    if key is None:
        if named is not None:
            raise CsrRefusedError(
                "The CSR names a recipient key, but the request has none: send it as"
                " key_encryption_public_key. Without it, the secrets would be sent"
                " unencrypted."
            )
        return
    if not request.subject.get_attributes_for_oid(NameOID.COMMON_NAME):
        raise CsrRefusedError(
            "With a recipient key, the CSR's common name must be the device_serial."
        )
    expected = recipient_urn(key)
    if named is None:
        raise CsrRefusedError(
            "The CSR does not name the recipient key: request a subjectAltName with the URI"
            f" {RECIPIENT_URN_PREFIX}<SHA-256 of its DER SubjectPublicKeyInfo in hex>."
        )
    if named != expected.removeprefix(RECIPIENT_URN_PREFIX):
        raise CsrRefusedError(
            "The CSR names another recipient key than key_encryption_public_key. The digest"
            f" in the URI {RECIPIENT_URN_PREFIX}... must be that of the DER"
            " SubjectPublicKeyInfo."
        )


def _requested(request: x509.CertificateSigningRequest) -> str | None:
    """Return the digest in the CSR's recipient key URI, in lower case, or None if there is no URI.

    Raises CsrRefusedError for several or malformed URIs.
    """
    try:
        extension = request.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return None
    uris = extension.value.get_values_for_type(x509.UniformResourceIdentifier)
    ours = [uri for uri in uris if uri.casefold().startswith(RECIPIENT_KEY_URN_PREFIX)]
    if not ours:
        return None
    digest = ours[0].removeprefix(RECIPIENT_URN_PREFIX)
    if len(ours) > 1 or not _DIGEST.fullmatch(digest):
        raise CsrRefusedError(
            f"The CSR must name the recipient key once, as {RECIPIENT_URN_PREFIX}<64 hex>."
        )
    return digest.lower()
