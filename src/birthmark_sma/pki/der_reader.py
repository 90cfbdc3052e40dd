"""Read elements of DER (X.690): the few that the library reads as something else."""

from typing import NamedTuple


class Element(NamedTuple):
    """One element: its tag, its content, and both with the length between them."""

    tag: int
    content: bytes
    whole: bytes


def elements(encoded: bytes) -> list[Element]:
    """Return the elements that stand one after another. Raises ValueError where one is cut off."""
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
