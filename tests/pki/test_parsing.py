"""PEM of strangers: what it costs to read, whatever it says."""

import time

import pytest

from birthmark_sma.pki.parsing import MAX_PEM_CHARACTERS, MalformedPemError, read_block

LABEL = "PUBLIC KEY"
BEGIN = f"-----BEGIN {LABEL}-----\n"
FILLINGS = ["\n", " \n", "\t", "\n-----END", "-----END PUBLIC KE", "A", "-----BEGIN", ":"]


def seconds_to_refuse(filling: str, characters: int) -> float:
    """Return the CPU seconds of the quickest of seven readings."""
    text = (BEGIN + filling * characters)[:characters]
    took = []
    for _ in range(7):
        began = time.thread_time()
        with pytest.raises(MalformedPemError):
            read_block(text, (LABEL,), "key")
        took.append(time.thread_time() - began)
    return min(took)


@pytest.mark.parametrize("filling", FILLINGS)
def test_a_block_without_end_is_refused_in_linear_time(filling: str) -> None:
    """Threat 34: 8,000 line ends held the interpreter, and so all callers, for half a second."""
    whole, quarter = (seconds_to_refuse(filling, MAX_PEM_CHARACTERS // each) for each in (1, 4))
    assert whole < 10 * quarter


def test_white_space_around_lines_is_passed_over() -> None:
    text = f"{BEGIN.rstrip()} \t\r\n\n\n AQID\r\n\n-----END {LABEL}-----"
    assert read_block(text, (LABEL,), "key") == b"\x01\x02\x03"
