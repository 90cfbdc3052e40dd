"""Classify repeated camera tokens as a replay or a dual submission. PURE.

A camera may send a picture to two aggregation servers. Each of them has the same token validated:
this is a dual submission, and normal. The same caller has no such reason to submit a token twice:
this is a replay. The replay ledger of the authority stores what was seen; this module must never
read or write it.
"""

from collections.abc import Sequence, Set
from enum import StrEnum
from typing import NamedTuple


class Repeat(StrEnum):
    """The kind of repeat, for a camera token that was seen before."""

    REPLAYED = "replayed"
    """The same caller submitted it before."""
    DUAL_SUBMISSION = "dual_submission"
    """Other callers submitted it before. This caller submits it for the first time."""


class SeenToken(NamedTuple):
    """The digest of a camera token, and the caller who submitted it."""

    digest: bytes
    caller: str


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
