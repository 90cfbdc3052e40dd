"""Which sight of a token is the first, and what kind of repeat the others are."""

from hypothesis import given
from hypothesis import strategies as st

from birthmark_sma.protocol.camera_token import CameraToken
from birthmark_sma.protocol.key_table import MAX_WIRE_INTEGER
from birthmark_sma.protocol.replay import (
    DIGEST_BYTES,
    Repeat,
    SeenToken,
    classify,
    token_digest,
    without_first_sights,
)

_tokens = st.builds(
    CameraToken,
    encrypted_nuc_hash=st.binary(min_size=48, max_size=48),
    table_id=st.integers(0, MAX_WIRE_INTEGER),
    key_index=st.integers(0, MAX_WIRE_INTEGER),
    nonce=st.binary(min_size=12, max_size=12),
)
_sightings = st.lists(
    st.builds(SeenToken, st.sampled_from([b"a", b"b", b"c"]), st.sampled_from(["x", "y", "z"]))
)


@given(_tokens, _tokens)
def test_a_digest_stands_for_one_token(one: CameraToken, other: CameraToken) -> None:
    assert len(token_digest(one)) == DIGEST_BYTES
    assert (token_digest(one) == token_digest(other)) == (one == other)


def test_no_part_runs_into_the_next() -> None:
    digests = {
        token_digest(CameraToken(bytes(48), table_id, key_index, bytes(12)))
        for table_id, key_index in [(0, 0), (1, 0), (0, 1), (256, 0), (0, 256), (1, 1)]
    }
    assert len(digests) == 6


@given(_sightings, _sightings)
def test_batches_are_told_apart_as_one_by_one(
    before: list[SeenToken], batch: list[SeenToken]
) -> None:
    """Held against the definition, token by token."""
    seen = {sighting.digest for sighting in before}
    known = set(before)
    fresh = {sighting.digest for sighting in batch} - seen
    repeats = without_first_sights(batch, fresh)
    first = {s.digest: s for s, repeat in zip(batch, repeats, strict=True) if repeat is None}
    kinds = classify(repeats, known | set(first.values()))
    for sighting, kind in zip(batch, kinds, strict=True):
        if sighting.digest not in seen:
            assert kind is None
        elif sighting in known:
            assert kind is Repeat.REPLAYED
        else:
            assert kind is Repeat.DUAL_SUBMISSION
        seen.add(sighting.digest)
        known.add(sighting)
