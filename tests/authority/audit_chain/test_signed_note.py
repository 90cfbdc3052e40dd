"""Signed notes are those of other implementations, and nothing else is accepted."""

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from birthmark_sma.authority.audit_chain.signed_note import format_verifier, open_note, sign

# The example of golang.org/x/mod/sumdb/note, which the specification describes.
VERIFIER = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
TEXT = (
    "If you think cryptography is the answer to your problem,\n"
    "then you don't know what your problem is.\n"
)
NOTE = TEXT + (
    "\n\u2014 PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdng"
    "otpRZb6KE6RyyBwJnAM=\n"
)
KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
OURS = format_verifier(KEY.public_key().public_bytes_raw())


def test_the_example_of_another_implementation() -> None:
    """It opens with the key that its authors publish."""
    assert open_note(NOTE, VERIFIER) == TEXT


def test_a_note_of_ours() -> None:
    """It opens, also beside the signatures of others."""
    note = sign(TEXT, KEY)
    assert open_note(note, OURS) == TEXT
    assert open_note(note + NOTE.splitlines(keepends=True)[-1], OURS) == TEXT


@pytest.mark.parametrize(
    "note",
    [
        "",
        TEXT,
        sign(TEXT, KEY).replace("problem", "Problem"),
        sign(TEXT, KEY).removesuffix("\n"),
        sign(TEXT, KEY).replace("\u2014", "-"),
        sign(TEXT, KEY).replace("birthmark", "Birthmark"),
        sign(TEXT, KEY)[:-9] + "AAAAAAA=\n",
        f"{TEXT}\n\u2014 birthmark-sma-audit \ud83d\ude00\n",
        sign(TEXT, Ed25519PrivateKey.generate()),
    ],
)
def test_other_notes(note: str) -> None:
    """None is opened."""
    with pytest.raises(ValueError, match=r"sign|note"):
        open_note(note, OURS)


@pytest.mark.parametrize(
    "verifier", ["", "a+b+c", OURS[:-4], OURS.replace("sma", "smb"), OURS.replace("+A", "+B")]
)
def test_other_keys(verifier: str) -> None:
    """A key that was mistyped is told."""
    with pytest.raises(ValueError, match="key"):
        open_note(sign(TEXT, KEY), verifier)
