"""The Merkle tree hash of RFC 9162, section 2.1.1, with SHA-256. PURE.

`batches` computes the root of each batch with it. Leaves come from `leaves` and are hashed already:
it must never be given the data itself.
"""

from collections.abc import Sequence
from hashlib import sha256

NODE_PREFIX = b"\x01"
EMPTY_ROOT = sha256().digest()
"""The root of a tree without leaves."""


def merkle_root(leaves: Sequence[bytes]) -> bytes:
    """Return the root above leaf hashes of 32 bytes.

    Pairs of neighbours are hashed level by level, and the last one of an odd level moves up. This
    is the tree that the RFC defines by splitting at the largest power of two.
    """
    level: Sequence[bytes] = leaves
    while len(level) > 1:
        neighbours = iter(level)
        above = [
            sha256(NODE_PREFIX + left + right).digest()
            for left, right in zip(neighbours, neighbours, strict=False)
        ]
        if len(level) % 2:
            above.append(level[-1])
        level = above
    return level[0] if level else EMPTY_ROOT
