"""Make the forged and tampered bundles of a simulation from genuine ones.

`fleet` calls this for each such case. Pure: random bytes are passed in as a function.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace

from cryptography.hazmat.primitives.asymmetric import ec

from birthmark_sma.protocol import camera_token, key_derivation
from birthmark_sma.protocol.bundle import Bundle
from birthmark_sma.protocol.bundle_signature import sign_bundle
from birthmark_sma.protocol.camera_token import CameraToken
from birthmark_sma.simulation.expected_outcomes import Case

UNKNOWN_TABLE = 1_000_000
UNKNOWN_KEY_INDEX = 1_000_000

RandomBytes = Callable[[int], bytes]


def altered_token(
    case: Case, token: CameraToken, *, chance: RandomBytes, key: bytes
) -> CameraToken:
    """Return the camera token, altered as the case describes.

    `key` is the pseudorandom key of the token's table (RFC 5869, section 2.2). The case
    WRONG_NUC_HASH needs it to seal a new token. Raises KeyError for a case without an alteration.
    """
    if case is Case.WRONG_NUC_HASH:
        return camera_token.seal(
            chance(camera_token.NUC_HASH_BYTES),
            key=key_derivation.expand(key, token.key_index),
            table_id=token.table_id,
            key_index=token.key_index,
            nonce=token.nonce,
        )
    return _ALTERED[case](token)


def _flip(text: bytes, at: int) -> bytes:
    """Return the text with the lowest bit of one byte flipped. `at` is its index."""
    altered = bytearray(text)
    altered[at] ^= 1
    return bytes(altered)


_ALTERED: Mapping[Case, Callable[[CameraToken], CameraToken]] = {
    Case.TAMPERED_CIPHERTEXT: lambda token: replace(
        token, encrypted_nuc_hash=_flip(token.encrypted_nuc_hash, 0)
    ),
    Case.TAMPERED_TAG: lambda token: replace(
        token, encrypted_nuc_hash=_flip(token.encrypted_nuc_hash, -1)
    ),
    Case.TAMPERED_NONCE: lambda token: replace(token, nonce=_flip(token.nonce, 0)),
    Case.TAMPERED_TABLE_ID: lambda token: replace(token, table_id=token.table_id ^ 1),
    Case.TAMPERED_KEY_INDEX: lambda token: replace(token, key_index=token.key_index ^ 1),
    Case.UNKNOWN_TABLE: lambda token: replace(token, table_id=UNKNOWN_TABLE),
    Case.UNKNOWN_KEY_INDEX: lambda token: replace(token, key_index=UNKNOWN_KEY_INDEX),
}


def with_token(bundle: Bundle, token: CameraToken, key: ec.EllipticCurvePrivateKey) -> Bundle:
    """Return the bundle with another camera token, signed by the device that holds `key`."""
    return sign_bundle(replace(bundle.content, camera_token=token), key)


def signed_by_another(bundle: Bundle, key: ec.EllipticCurvePrivateKey) -> Bundle:
    """Return the bundle with a signature by a key that its certificate does not name."""
    return sign_bundle(bundle.content, key)


def with_another_picture(bundle: Bundle, image_hash: bytes) -> Bundle:
    """Return the bundle with the hash of another picture and the original signature."""
    return replace(bundle, content=replace(bundle.content, image_hash=image_hash))
