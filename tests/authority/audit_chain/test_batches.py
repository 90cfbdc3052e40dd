"""The tree hash, against values of RFC 9162 implementations and its recursive definition."""

from hashlib import sha256

import pytest

from birthmark_sma.authority.audit_chain.batches import merkle_root

# The inputs and roots that Certificate Transparency's implementations test with (Trillian, Go).
INPUTS = [bytes.fromhex(each) for each in (
    "", "00", "10", "2021", "3031", "40414243",
    "5051525354555657", "606162636465666768696a6b6c6d6e6f",
)]  # fmt: skip
ROOTS = [
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]


def leaf(data: bytes) -> bytes:
    """Return the leaf hash of RFC 9162."""
    return sha256(b"\0" + data).digest()


@pytest.mark.parametrize("size", range(9))
def test_known_roots(size: int) -> None:
    """Of Certificate Transparency's test data, for trees of 0 to 8 leaves."""
    assert merkle_root([leaf(each) for each in INPUTS[:size]]).hex() == ROOTS[size]


def by_definition(leaves: list[bytes]) -> bytes:
    """Return the root as section 2.1.1 defines it: split at the largest power of two below."""
    if len(leaves) == 1:
        return leaves[0]
    split = 1 << (len(leaves) - 1).bit_length() - 1
    return sha256(b"\1" + by_definition(leaves[:split]) + by_definition(leaves[split:])).digest()


@pytest.mark.parametrize("size", [9, 100, 255, 256, 257, 1_000])
def test_the_definition(size: int) -> None:
    """Larger trees are those of the recursive definition."""
    leaves = [leaf(b"%d" % number) for number in range(size)]
    assert merkle_root(leaves) == by_definition(leaves)
