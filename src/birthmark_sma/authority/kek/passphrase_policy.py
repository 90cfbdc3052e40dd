"""The rules for a new passphrase. It must not be short, common or made by a usual pattern.

Called before an authority is created, and by the rotation of secrets. It must never refuse the
passphrase of an existing authority, which could not be opened any more; `sma secrets check`
only reports a weak one.
"""

import re
import unicodedata
from pathlib import Path

from birthmark_sma.errors import ConfigurationError

LEAST_CHARACTERS = 12
_LEAST_VARIETY = 5  # different characters
# Common substitutions, as in P4ssw0rd or $ummer.
_SPELLINGS = str.maketrans("@4310!$5780", "aaeloisstbo")
_ROWS = (
    "abcdefghijklmnopqrstuvwxyz",
    "01234567890123456789",
    "qwertyuiop",
    "qwertzuiop",
    "azertyuiop",
    "asdfghjkl",
    "zxcvbnm",
    "1qaz2wsx3edc4rfv5tgb6yhn7ujm",
    "1q2w3e4r5t6y7u8i9o0p",
    "q1w2e3r4t5y6u7i8o9p0",
)
_LEAST_OF_A_ROW = 4  # a shorter part of a row may be chance
_LONGEST = 64
"""The longest text that is matched against the list of words. The regular expression backtracks,
and would take too long for a longer text of many words."""
_LETTER = re.compile(r"[^\W\d_]")
_AROUND = re.compile(r"^[\d\s]+|[\W\d_]+$")


def _listed(name: str) -> list[str]:
    lines = (Path(__file__).parent / name).read_text("utf-8").splitlines()
    return [line for line in lines if not line.startswith("#")]


_COMMON = frozenset(_listed("common_passphrases.txt"))
_WORDS = sorted(_listed("common_words.txt"), key=len, reverse=True)
_MADE_OF_WORDS = re.compile(rf"(?:{'|'.join(_WORDS)}|[\W\d_])+")


def check_new_passphrase(passphrase: bytes) -> None:
    """Raise ConfigurationError if a new passphrase is easy to guess.

    The error never contains a part of the passphrase.
    """
    weakness = find_weakness(passphrase)
    if weakness is not None:
        raise ConfigurationError(
            f"The new passphrase {weakness}. Nothing was changed. Take a random one. To make it,"
            " type: openssl rand -base64 24"
        )


def find_weakness(passphrase: bytes) -> str | None:
    """Return why a passphrase is easy to guess, as the end of a sentence, or None if it is not.

    None means only that no rule here applies.
    """
    # NFKC, so that variants of a letter, such as full-width ones, count as the letter.
    text = unicodedata.normalize("NFKC", passphrase.decode("utf-8", "replace")).strip()
    if len(text) < LEAST_CHARACTERS:
        return f"is shorter than {LEAST_CHARACTERS} characters"
    folded = text.casefold()
    if len(set(folded)) < _LEAST_VARIETY or _is_repetition(folded):
        return "repeats the same few characters"
    rest = _without_rows(folded)
    if folded in _COMMON or len(rest) < _LEAST_OF_A_ROW:
        return "is among the most common ones"
    spelt_out = _AROUND.sub("", rest).translate(_SPELLINGS)
    if any(
        len(each) <= _LONGEST and _LETTER.search(each) and _MADE_OF_WORDS.fullmatch(each)
        for each in (rest, spelt_out)
    ):
        return "is made of common words and numbers"
    return None


def _is_repetition(text: str) -> bool:
    """Return whether a text consists of one part that is repeated, such as "abcabc"."""
    # Such a text, and no other, occurs in its double at a place other than the two halves.
    return text in (text + text)[1:-1]


def _without_rows(text: str) -> str:
    """Return a text without sequences of 4 or more characters from one of `_ROWS`.

    Rows are keyboard rows, the alphabet and digits, forwards and backwards.
    """
    rest, start = "", 0
    while start < len(text):
        length = max(_in_a_row(text[start:], row) for row in _ROWS + tuple(r[::-1] for r in _ROWS))
        if length < _LEAST_OF_A_ROW:
            rest, length = rest + text[start], 1
        start += length
    return rest


def _in_a_row(text: str, row: str) -> int:
    """Return the length of the longest beginning of a text that is part of a row."""
    length = 0
    while length < len(text) and text[: length + 1] in row:
        length += 1
    return length
