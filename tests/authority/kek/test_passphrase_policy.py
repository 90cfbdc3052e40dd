"""New passphrases: which are refused, and that no random one ever is."""

import base64
import random
import secrets

import pytest

from birthmark_sma.authority.kek.passphrase_policy import check_new_passphrase, find_weakness
from birthmark_sma.errors import ConfigurationError


@pytest.mark.parametrize(
    "passphrase",
    [
        "a",
        "x" * 11,
        "x" * 200,
        " " * 40,
        "hunter2",
        "Tr0ub4dor&3",
        "a b         ",
        "123456789012",
        "098765432109",
        "1234567890qwertyuiop",
        "qwertyuiop123",
        "1q2w3e4r5t6y",
        "abcdefghijkl",
        "abcabcabcabc",
        "xkcdxkcdxkcd",
        "passwordpassword",
        "Password1234",
        "P@ssw0rd2026",
        "Summer2026!!",
        "$ummer2026!!",
        "Summer-2026-Winter",
        "Frühling2026!",
        "September2026",
        "Birthmark2026",
        "birthmark-sma-password",
        "Administrator1",
        "changemeplease",
        "welcome12345",
        "MyPassword2026!",
        "\uff33ummer2026!!",
        "correcthorsebatterystaple",
    ],
)
def test_an_easy_passphrase_is_refused(passphrase: str) -> None:
    """Threat 43: season and year, and what else is tried first. The error tells nothing of it."""
    with pytest.raises(ConfigurationError) as caught:
        check_new_passphrase(passphrase.encode())
    assert passphrase not in str(caught.value) or len(passphrase) < 3
    assert "openssl rand" in str(caught.value)


@pytest.mark.parametrize(
    "passphrase",
    [
        "a long random passphrase",
        "a passphrase for tests alone",
        "correct hörse battery",
        "mauve-anvil-tundra-oboe",
        "d41d8cd98f00b204e9800998ecf8427e",
        "Kh7#pQz!92vLmX",
        "длинная фраза для ключа",
    ],
)
def test_a_good_passphrase_is_taken(passphrase: str) -> None:
    """Words that are not the first to be tried, and what a generator writes."""
    assert find_weakness(passphrase.encode()) is None


def test_no_random_passphrase_is_refused() -> None:
    """Neither in hexadecimal, nor in base64, nor in decimal.

    A seed, because chance does make weak ones: one of a million numbers of 21 digits has no more
    than four different digits, and is rightly refused.
    """
    chance = random.Random(43)  # nosec B311
    for _ in range(300):
        for made in (
            chance.randbytes(16).hex(),
            base64.urlsafe_b64encode(chance.randbytes(32)).decode(),
            base64.urlsafe_b64encode(chance.randbytes(12)).decode(),
            str(chance.randrange(10**20, 2 * 10**20)),
        ):
            assert find_weakness(made.encode()) is None, made


def test_bytes_that_are_no_text_are_judged_as_well() -> None:
    """A passphrase from a file may be anything."""
    assert find_weakness(secrets.token_bytes(48)) is None
    assert find_weakness(b"\xff" * 48) is not None
