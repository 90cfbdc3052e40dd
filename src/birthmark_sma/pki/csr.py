"""PKCS#10 certification requests (RFC 2986): proof that the device holds its private key.

Only the public key and the proof are taken from a request. Subject and extensions are the
authority's to choose, but a request that names another device is refused: somebody stole it, or
mixed two up.
"""

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.x509.oid import NameOID

from birthmark_sma.errors import CsrRefusedError
from birthmark_sma.pki.key_policy import MAX_PEM_CHARACTERS, DeviceKey, check_key


def verify(pem: str, device_serial: str) -> DeviceKey:
    """Return the requester's public key once its possession is proven. RFC 2986, section 3.

    Raises CsrRefusedError for a request that is malformed, whose signature does not verify, or
    whose common name is not `device_serial`; KeyRefusedError for a key that the policy refuses.
    """
    if len(pem) > MAX_PEM_CHARACTERS:
        raise CsrRefusedError(f"A CSR in PEM has at most {MAX_PEM_CHARACTERS} characters.")
    try:
        request = x509.load_pem_x509_csr(pem.encode())
        public_key = request.public_key()
        common_names = request.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    except (ValueError, TypeError, UnsupportedAlgorithm, x509.InvalidVersion):
        raise CsrRefusedError(
            "The CSR cannot be read: send PEM PKCS#10, which begins"
            " '-----BEGIN CERTIFICATE REQUEST-----'."
        ) from None
    # The policy comes first: verifying under a refused key could be slow, or prove nothing.
    device_key = check_key(public_key)
    if not _hash_is_sound(request):
        raise CsrRefusedError("The CSR is signed over a hash that proves nothing: use SHA-256.")
    if not _signature_verifies(request):
        raise CsrRefusedError(
            "The CSR's signature does not verify under its own key: sign it with the private key of"
            " the public key inside."
        )
    if any(common_name.value != device_serial for common_name in common_names):
        raise CsrRefusedError(
            "The CSR's common name is not the device_serial of this request: leave it out, or make"
            " them equal."
        )
    return device_key


def _hash_is_sound(request: x509.CertificateSigningRequest) -> bool:
    """Say whether the signature is over SHA-2, or of a kind that hashes by itself (Ed25519)."""
    try:
        algorithm = request.signature_hash_algorithm
    except UnsupportedAlgorithm:
        return False
    return algorithm is None or isinstance(algorithm, hashes.SHA256 | hashes.SHA384 | hashes.SHA512)


def _signature_verifies(request: x509.CertificateSigningRequest) -> bool:
    try:
        return request.is_signature_valid
    except (UnsupportedAlgorithm, ValueError):
        return False
