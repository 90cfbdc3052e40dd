"""Bundles that are not what they should be, made of genuine ones. Pure: chance is passed in."""

from collections.abc import Callable
from dataclasses import replace

from cryptography.hazmat.primitives.asymmetric import ec

from birthmark_sma.protocol import camera_token, key_derivation
from birthmark_sma.protocol.bundle import Bundle
from birthmark_sma.protocol.bundle_signature import sign_bundle
from birthmark_sma.protocol.camera_token import CameraToken
from birthmark_sma.simulation.cases import Case

UNKNOWN_TABLE = 1_000_000
UNKNOWN_KEY_INDEX = 1_000_000

RandomBytes = Callable[[int], bytes]


def altered_token(case: Case, token: CameraToken, *, chance: RandomBytes, key: bytes) -> CameraToken:
    """Return a camera token with what the case says done to it.

    `key` is the pseudorandom key of the token's table (RFC 5869, section 2.2), for what the device
    itself seals anew.
    """
    text = token.encrypted_nuc_hash
    match case:
        case Case.TAMPERED_CIPHERTEXT:
            return replace(token, encrypted_nuc_hash=_flip(text, 0))
        case Case.TAMPERED_TAG:
            return replace(token, encrypted_nuc_hash=_flip(text, len(text) - 1))
        case Case.TAMPERED_NONCE:
            return replace(token, nonce=_flip(token.nonce, 0))
        case Case.TAMPERED_TABLE_ID:
            return replace(token, table_id=token.table_id ^ 1)
        case Case.TAMPERED_KEY_INDEX:
            return replace(token, key_index=token.key_index ^ 1)
        case Case.UNKNOWN_TABLE:
            return replace(token, table_id=UNKNOWN_TABLE)
        case Case.UNKNOWN_KEY_INDEX:
            return replace(token, key_index=UNKNOWN_KEY_INDEX)
        case Case.WRONG_NUC_HASH:
            return camera_token.seal(
                chance(camera_token.NUC_HASH_BYTES),
                key=key_derivation.expand(key, token.key_index),
                table_id=token.table_id,
                key_index=token.key_index,
                nonce=token.nonce,
            )
        case _:
            raise AssertionError(f"{case} is not done to a camera token")


def with_token(bundle: Bundle, token: CameraToken, key: ec.EllipticCurvePrivateKey) -> Bundle:
    """Return the bundle with another camera token, signed by the device that holds `key`."""
    return sign_bundle(replace(bundle.content, camera_token=token), key)


def signed_by_another(bundle: Bundle, key: ec.EllipticCurvePrivateKey) -> Bundle:
    """Return the bundle with a signature by a key that its certificate does not name."""
    return sign_bundle(bundle.content, key)


def with_another_picture(bundle: Bundle, image_hash: bytes) -> Bundle:
    """Return the bundle with another picture's hash, and the signature as it was."""
    return replace(bundle, content=replace(bundle.content, image_hash=image_hash))


def _flip(text: bytes, at: int) -> bytes:
    return text[:at] + bytes([text[at] ^ 1]) + text[at + 1 :]
