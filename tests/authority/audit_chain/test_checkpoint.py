"""The text of checkpoints, and the sum of several."""

from datetime import UTC, datetime, timedelta

import pytest

from birthmark_sma.authority.audit_chain.batches import End
from birthmark_sma.authority.audit_chain.checkpoint import Signed, digest_of, parse

NOW = datetime(2026, 11, 30, 12, 0, tzinfo=UTC)
ONE = {"aa": End(1, b"a" * 32)}
TWO = {"aa": End(1, b"a" * 32), "bb": End(4, b"b" * 32)}


def test_the_documented_text() -> None:
    """As docs/operate/tamper-evidence.md shows it."""
    checkpoint = Signed().follow(
        TWO,
        NOW,
        lists_all=True,
        pruned=NOW - timedelta(days=1),
        gone={"aa": End(0, bytes(32))},
        coarse=NOW - timedelta(hours=12),
    )
    assert checkpoint.as_text() == (
        "birthmark-sma audit checkpoint v1\n"
        "number 1\n"
        "time 2026-11-30T12:00:00Z\n"
        f"previous {'0' * 64}\n"
        "chains 2 all\n"
        f"heads {digest_of(TWO)}\n"
        "pruned 2026-11-29T12:00:00Z\n"
        "coarse 2026-11-30T00:00:00Z\n"
        f"gone aa 0 {'00' * 32}\n"
        f"chain aa 1 {'61' * 32}\n"
        f"chain bb 4 {'62' * 32}\n"
    )
    assert parse(checkpoint.as_text()) == checkpoint


def test_the_sum_of_checkpoints() -> None:
    """The second names only the chain that grew, and the sum has both."""
    first = Signed().follow(ONE, NOW, lists_all=False)
    signed = Signed().add(first, "note 1")
    second = signed.follow(TWO, NOW, lists_all=False)
    assert list(second.chains) == ["bb"]
    assert signed.add(second, "note 2").chains == TWO


def test_what_does_not_fit() -> None:
    """A number, a digest, a shorter chain, and a list that is not that of the digest."""
    first = Signed().follow(TWO, NOW, lists_all=False)
    signed = Signed().add(first, "note 1")
    for other, why in (
        (Signed(number=2, digest=signed.digest, chains=TWO), "missing"),
        (Signed(number=1, chains=TWO), "another"),
        (Signed(number=1, digest=signed.digest), "shorter"),
    ):
        ends = {"aa": End(2, b"c" * 32), "bb": End(3, b"b" * 32)}
        with pytest.raises(ValueError, match=why):
            signed.add(other.follow(ends, NOW, lists_all=False), "note 2")
    grown = {"aa": End(1, b"a" * 32), "bb": End(5, b"c" * 32)}
    wrong = Signed(number=1, digest=signed.digest, chains=grown).follow(grown, NOW, lists_all=False)
    with pytest.raises(ValueError, match="does not fit"):
        signed.add(wrong, "note 2")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "birthmark-sma audit checkpoint v2\nnumber 1\n",
        "birthmark-sma audit checkpoint v1\nnumber 1\n",
        "birthmark-sma audit checkpoint v1\nchain a b c\n",
        "birthmark-sma audit checkpoint v1\nchain a\n",
    ],
)
def test_other_texts(text: str) -> None:
    """They are no checkpoints."""
    with pytest.raises(ValueError, match=r"."):
        parse(text)


@pytest.mark.parametrize(
    ("part", "other"),
    [
        ("number 1\n", "number 1\nnumber 1\n"),
        ("number 1\n", "number 1\nmore 1\n"),
        ("number 1\n", "number 01\n"),
        ("aa 1", "aa \u0661"),
        ("aa 1", "aa +1"),
        (f"chain aa 1 {'61' * 32}", f"chain aa 2 {'62' * 32}\nchain aa 1 {'61' * 32}"),
        (f"{'61' * 32}", f"{'61 ' * 32}"),
    ],
)
def test_a_checkpoint_has_one_spelling(part: str, other: str) -> None:
    """Every program reads the same from it."""
    text = Signed().follow(ONE, NOW, lists_all=True).as_text()
    assert parse(text)
    with pytest.raises(ValueError, match=r"written|unpack"):
        parse(text.replace(part, other))
