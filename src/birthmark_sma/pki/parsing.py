"""Split PEM (RFC 7468) and DER (X.690) into their parts, or raise an error that names the mistake.

`csr`, `key_policy`, `ocsp` and the proof of a renewal use it: for texts of strangers, and for the
few structures that the cryptography library reads as something else. It must never interpret the
content of a block or of an element.
"""

import binascii
import re
from typing import NamedTuple

MAX_PEM_CHARACTERS = 8_192

_BOUNDARY = "-----BEGIN "
# This pattern matches in one way only. `\s*\n` would retry at each of 8,000 line ends, which took
# 0.5 s in total.
_BLOCK = re.compile(r"-----BEGIN ([A-Z0-9 ]+)-----[^\S\n]*\n(.*?)-----END \1-----", re.DOTALL)
_X963_LENGTHS = {33: b"\x02\x03", 49: b"\x02\x03", 65: b"\x04", 97: b"\x04"}
"""The first byte of an EC point, by the length of the point in bytes.

Points of P-256 and P-384, compressed (33 and 49 bytes) or uncompressed (65 and 97 bytes).
"""
_MAX_TRIED_CHARACTERS = 256


class MalformedPemError(ValueError):
    """The text is not one PEM block. The message is a sentence that names the cause."""


def read_block(pem: str, labels: tuple[str, ...], name: str) -> bytes:
    """Return the decoded content of the text's only PEM block.

    Its label must be one of `labels`. `name` describes the content in error messages. Text around
    the block is allowed, as `openssl -text` writes it.

    Raises MalformedPemError.
    """
    if len(pem) > MAX_PEM_CHARACTERS:
        raise MalformedPemError(f"A {name} in PEM has at most {MAX_PEM_CHARACTERS} characters.")
    if pem.count(_BOUNDARY) > 1:
        raise MalformedPemError(f"The field holds more than one PEM block: send one {name} alone.")
    try:
        pem.encode()
    except UnicodeEncodeError:  # a lone surrogate
        raise MalformedPemError(f"The {name} has characters that UTF-8 cannot encode.") from None
    found = _BLOCK.search(pem)
    if found is None or found[1] not in labels:
        raise MalformedPemError(
            f"Send a {name} in PEM, which begins '-----BEGIN {labels[0]}-----'."
        )
    if ":" in found[2]:
        raise MalformedPemError(
            f"The PEM has encryption headers, which only private keys have: send the {name}"
            " without them."
        )
    try:
        return binascii.a2b_base64("".join(found[2].split()), strict_mode=True)
    except ValueError:
        raise MalformedPemError(f"The PEM of the {name} is damaged: it is not base64.") from None


def is_bare_point(content: bytes) -> bool:
    """Return True for an EC point without a wrapper (ANSI X9.63), as iOS exports keys."""
    first = content[:1]
    return bool(first) and first in _X963_LENGTHS.get(len(content), b"")


def bare_base64(text: str) -> bytes:
    """Decode a short base64 text without PEM boundaries. Return no bytes if it is not base64."""
    if len(text) > _MAX_TRIED_CHARACTERS:
        return b""
    try:
        return binascii.a2b_base64("".join(text.split()), strict_mode=True)
    except ValueError:
        return b""


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
