"""Camera tokens that come again: which sight is the first, and what kind of repeat another one is.

A picture may be sent to two aggregation servers, and each has the same token validated: that is
dual submission, and normal. One and the same caller has no such reason to bring a token again.
"""

import hashlib
import struct
from collections.abc import Sequence, Set
from enum import StrEnum
from typing import NamedTuple

from birthmark_sma.protocol.camera_token import CameraToken
from birthmark_sma.protocol.key_derivation import NORMATIVE, Derivation

DIGEST_BYTES = 16
"""Among a thousand million tokens, the chance that two share a digest is one in 10^21, and to find
another token for the digest of a given one takes 2^128 trials."""

_ADDRESS = struct.Struct("!QQ")


class Repeat(StrEnum):
    """What kind of repeat a camera token is that was seen before."""

    REPLAYED = "replayed"
    """This caller brought it before."""
    DUAL_SUBMISSION = "dual_submission"
    """Others brought it before; this caller does so for the first time."""


class SeenToken(NamedTuple):
    """A camera token, by its digest, and who brings it."""

    digest: bytes
    caller: str


def token_digest(camera_token: CameraToken, derivation: Derivation = NORMATIVE) -> bytes:
    """Return 16 bytes that stand for a token and what was asked of it.

    BLAKE2b (RFC 7693) over all that is on the wire, personalised by the derivation: a token that is
    validated under another derivation is another question, and no repeat. Every part has a fixed
    length, so no two tokens are the same text. The nonce is drawn at random, so a digest gives no
    token away.
    """
    address = _ADDRESS.pack(camera_token.table_id, camera_token.key_index)
    text = address + camera_token.nonce + camera_token.encrypted_nuc_hash
    return hashlib.blake2b(text, digest_size=DIGEST_BYTES, person=derivation.label).digest()


def without_first_sights(
    sightings: Sequence[SeenToken], fresh: Set[bytes]
) -> list[SeenToken | None]:
    """Return the sightings with None where a token is seen for the first time ever.

    `fresh` are the digests that nobody brought before this batch: their first sight is the first
    one in it.
    """
    unseen = set(fresh)
    repeats: list[SeenToken | None] = []
    for sighting in sightings:
        if sighting.digest in unseen:
            unseen.remove(sighting.digest)
            repeats.append(None)
        else:
            repeats.append(sighting)
    return repeats


def classify(
    repeats: Sequence[SeenToken | None], brought_before: Set[SeenToken]
) -> list[Repeat | None]:
    """Say what kind each repeat is, in order; None stays None.

    `brought_before` are those whose caller brought that token before: as the first of all, or as a
    repeat of an earlier batch.
    """
    known = set(brought_before)
    kinds: list[Repeat | None] = []
    for repeat in repeats:
        if repeat is None:
            kinds.append(None)
        elif repeat in known:
            kinds.append(Repeat.REPLAYED)
        else:
            known.add(repeat)
            kinds.append(Repeat.DUAL_SUBMISSION)
    return kinds
