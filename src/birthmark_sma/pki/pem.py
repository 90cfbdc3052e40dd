"""Take the one block out of a PEM text (RFC 7468), and say what is wrong with it otherwise."""

import binascii
import re

MAX_PEM_CHARACTERS = 8_192

_BOUNDARY = "-----BEGIN "
# One way to match only: `\s*\n` would be tried at each of 8,000 line ends, which took 0.5 s in all.
_BLOCK = re.compile(r"-----BEGIN ([A-Z0-9 ]+)-----[^\S\n]*\n(.*?)-----END \1-----", re.DOTALL)
_X963_LENGTHS = {33: b"\x02\x03", 49: b"\x02\x03", 65: b"\x04", 97: b"\x04"}
_MAX_TRIED_CHARACTERS = 256


class MalformedPemError(ValueError):
    """A text is not one PEM block. The message is a sentence that names the cause."""


def read_block(pem: str, labels: tuple[str, ...], name: str) -> bytes:
    """Return the content of a text's only PEM block, whose label is one of `labels`.

    Text around the block is allowed, as `openssl -text` writes it. Raises MalformedPemError.
    """
    if len(pem) > MAX_PEM_CHARACTERS:
        raise MalformedPemError(f"A {name} in PEM has at most {MAX_PEM_CHARACTERS} characters.")
    if pem.count(_BOUNDARY) > 1:
        raise MalformedPemError(f"The field holds more than one PEM block: send one {name} alone.")
    try:
        pem.encode()
    except UnicodeEncodeError:  # of a lone surrogate
        raise MalformedPemError(f"The {name} is no text that can be read.") from None
    found = _BLOCK.search(pem)
    if found is None or found[1] not in labels:
        raise MalformedPemError(
            f"Send a {name} in PEM, which begins '-----BEGIN {labels[0]}-----'."
        )
    if ":" in found[2]:
        raise MalformedPemError(
            f"The PEM has encryption headers, as only a private key has: send the {name} without."
        )
    try:
        return binascii.a2b_base64("".join(found[2].split()), strict_mode=True)
    except ValueError:
        raise MalformedPemError(f"The PEM of the {name} is damaged: it is not base64.") from None


def is_bare_point(content: bytes) -> bool:
    """Say whether these are the bytes of an EC point alone (ANSI X9.63), as iOS exports keys."""
    first = content[:1]
    return bool(first) and first in _X963_LENGTHS.get(len(content), b"")


def bare_base64(text: str) -> bytes:
    """Return what a short text without PEM boundaries encodes in base64, or nothing."""
    if len(text) > _MAX_TRIED_CHARACTERS:
        return b""
    try:
        return binascii.a2b_base64("".join(text.split()), strict_mode=True)
    except ValueError:
        return b""
