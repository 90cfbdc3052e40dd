"""Split DER (X.690) into its elements.

`csr` and `key_policy` use it for the few structures that the cryptography library reads as
something else. It must not interpret the content of an element.
"""

from typing import NamedTuple


class Element(NamedTuple):
    """One DER element: `tag`, `content`, and `whole`, which is tag, length and content."""

    tag: int
    content: bytes
    whole: bytes


def elements(encoded: bytes) -> list[Element]:
    """Return the elements in `encoded`, in order.

    Raises ValueError if an element is cut off.
    """
    found = []
    place = 0
    while place < len(encoded):
        if len(encoded) < place + 2:
            raise ValueError("an element is cut off")
        length, begins = encoded[place + 1], place + 2
        if length >= 0x80:
            octets = encoded[begins : begins + (length & 0x7F)]
            begins += length & 0x7F
            length = int.from_bytes(octets, "big")
        ends = begins + length
        if ends > len(encoded):
            raise ValueError("an element is cut off")
        found.append(Element(encoded[place], encoded[begins:ends], encoded[place:ends]))
        place = ends
    return found
