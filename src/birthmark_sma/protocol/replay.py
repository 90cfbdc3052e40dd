"""Classify repeated camera tokens as a replay or a dual submission. PURE.

A camera may send a picture to two aggregation servers. Each of them has the same token validated:
this is a dual submission, and normal. The same caller has no such reason to submit a token twice:
this is a replay. The replay ledger of the authority stores what was seen; this module must never
read or write it.
"""

import hashlib
import struct
from collections.abc import Sequence, Set
from enum import StrEnum
from typing import NamedTuple

from birthmark_sma.protocol.camera_token import CameraToken
from birthmark_sma.protocol.key_derivation import NORMATIVE, Derivation

DIGEST_BYTES = 16
"""The length of a token digest.

Among 10^9 tokens, two share a digest with a probability of 1 in 10^21. To find another token with a
given digest takes 2^128 trials.
"""

# Two unsigned 64-bit integers: table id and key index, big-endian.
_ADDRESS = struct.Struct("!QQ")


class Repeat(StrEnum):
    """What kind of repeat a camera token is that was seen before."""

    REPLAYED = "replayed"
    """The same caller submitted it before."""
    DUAL_SUBMISSION = "dual_submission"
    """Other callers submitted it before. This caller submits it for the first time."""


class SeenToken(NamedTuple):
    """The digest of a camera token, and the caller who submitted it."""

    digest: bytes
    caller: str


def token_digest(camera_token: CameraToken, derivation: Derivation = NORMATIVE) -> bytes:
    """Return a 16-byte digest of a camera token and of the derivation it was submitted under.

    The digest is BLAKE2b (RFC 7693) over all fields on the wire, personalised by the derivation's
    label. The same token under another derivation is another question to the authority, so it is no
    repeat. Every field has a fixed length, so two different tokens never give the same input. The
    nonce is random, so a digest does not reveal the token.
    """
    address = _ADDRESS.pack(camera_token.table_id, camera_token.key_index)
    text = address + camera_token.nonce + camera_token.encrypted_nuc_hash
    return hashlib.blake2b(text, digest_size=DIGEST_BYTES, person=derivation.label).digest()


def without_first_sights(
    sightings: Sequence[SeenToken], fresh: Set[bytes]
) -> list[SeenToken | None]:
    """Return the sightings, with None in place of each first sighting of a token.

    `fresh` holds the digests that no caller submitted before this batch. The first sighting of such
    a digest in the batch is the first one ever.
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
    """Return the kind of each repeat, in order. None stays None.

    `brought_before` holds each token and caller where that caller submitted the token before,
    either as the first caller or as a repeat in an earlier batch.
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
