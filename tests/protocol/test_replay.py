"""Which sight of a token is the first, and what kind of repeat the others are."""

from hypothesis import given
from hypothesis import strategies as st

from birthmark_sma.protocol.replay import Repeat, SeenToken, classify, without_first_sights

_sightings = st.lists(
    st.builds(SeenToken, st.sampled_from([b"a", b"b", b"c"]), st.sampled_from(["x", "y", "z"]))
)


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
