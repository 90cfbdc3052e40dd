"""Sign the list of trusted roots, so that a verifier of one root can come to trust the next one.

The authority calls `sign_trust_list`. Verifiers use `openssl cms -verify`.
"""

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.hazmat.primitives.serialization.pkcs7 import PKCS7Options, PKCS7SignatureBuilder

from birthmark_sma.errors import ProfileViolationError
from birthmark_sma.pki.keys.ca_keys import Signer


def sign_trust_list(roots: bytes, root: x509.Certificate, signer: Signer) -> bytes:
    """Return a detached CMS signature (RFC 5652) over a list of roots in PEM, as DER.

    `root` is the certificate that verifiers trust already, and `signer` has its key. The signature
    contains the certificate. Raises ProfileViolationError if the key is that of another root.
    """
    if root.public_key() != signer.public_key:
        raise ProfileViolationError("The signing key does not belong to the root's certificate.")
    options = [PKCS7Options.DetachedSignature, PKCS7Options.Binary, PKCS7Options.NoCapabilities]
    builder = PKCS7SignatureBuilder().set_data(roots)
    return builder.add_signer(root, signer.key, signer.hash_algorithm).sign(Encoding.DER, options)
