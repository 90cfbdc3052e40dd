"""How the log looks on a real terminal and elsewhere, whatever a record was made of."""

import json
import os
import pty
import subprocess
import sys

import pytest

from birthmark_sma.runtime.redaction import format_traceback, printable, without_keys

PROGRAM = r"""
import logging
from birthmark_sma.config import Settings
from birthmark_sma.web.logs import setup
setup.configure(Settings())
log = logging.getLogger("birthmark_sma.somewhere")
log.warning("a \x1b[2J forged\nline of %s", "sma_abcdefghij_secret")
logging.getLogger("uvicorn.error").error("another's\n")
try:
    raise ValueError("sma_abcdefghij_secret \x1b[2J\nDETAIL:  Failing row contains (needle).")
except ValueError:
    log.exception("it failed")
"""


def on_a_terminal(**environ: str) -> str:
    """What a person sees."""
    controller, terminal = pty.openpty()
    environment = {"PATH": os.environ["PATH"], "TERM": "xterm-256color", **environ}
    command = [sys.executable, "-c", PROGRAM]
    subprocess.run(command, stderr=terminal, env=environment, check=True, timeout=60)
    os.close(terminal)
    seen = b""
    try:
        while part := os.read(controller, 65_536):
            seen += part
    except OSError:  # Linux' way of saying that nobody writes any more
        pass
    finally:
        os.close(controller)
    return seen.decode()


def check_harmless(seen: str) -> None:
    """Threat 28: nothing secret, and no record moves the cursor or begins a line."""
    assert "secret" not in seen
    assert "needle" not in seen
    assert "\x1b[2J" not in seen
    assert "sma_..." in seen
    assert sum("forged" in line for line in seen.splitlines()) == 1


def test_on_a_terminal_in_colours() -> None:
    """One line a record, and a traceback below."""
    seen = on_a_terminal()
    check_harmless(seen)
    first, second, third, *rest = seen.splitlines()
    assert "\x1b[33mwarning\x1b[0m a \\x1b[2J forged\\nline of sma_..." in first
    assert "another's" in second
    assert "uvicorn.error" in second
    assert "birthmark_sma.somewhere" not in seen  # a person knows what he started
    assert "it failed" in third
    assert any("ValueError" in line for line in rest)


def test_on_a_terminal_without_colours() -> None:
    """NO_COLOR is heard, and so is a terminal that knows none."""
    for seen in (on_a_terminal(NO_COLOR="1"), on_a_terminal(TERM="dumb")):
        check_harmless(seen)
        assert "\x1b" not in seen
        assert " warning a " in seen


def test_elsewhere_as_json() -> None:
    """An object a line, whatever stands in it."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, timeout=60
    )
    check_harmless(done.stderr)
    records = [json.loads(line) for line in done.stderr.splitlines()]
    assert [record["level"] for record in records] == ["warning", "error", "error"]
    assert "ValueError" in records[2]["exception"]
    assert {record["logger"] for record in records} == {"birthmark_sma.somewhere", "uvicorn.error"}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain", "plain"),
        ("Zoë 写真", "Zoë 写真"),
        ("a\tb\nc", "a\\tb\\nc"),
        ("\x9b31m", "\\x9b31m"),
        ("\u202egpj", "\\u202egpj"),
        ("\ud800", "\\ud800"),
    ],
)
def test_what_moves_a_cursor_is_spelt_out(text: str, shown: str) -> None:
    """Control characters of both sets, directions, lone surrogates; and nothing else."""
    assert printable(text) == shown


def test_keys_and_rows_are_left_out() -> None:
    """Wherever they stand."""
    assert without_keys("a sma_x_y, b/sma_z") == "a sma_..., b/sma_..."
    assert without_keys("birthmark_sma.web, SMA_HOST") == "birthmark_sma.web, SMA_HOST"
    error = ValueError("refused\nDETAIL:  row (1,\n2)\n[SQL: INSERT]")
    told = format_traceback((ValueError, error, None))
    assert told == "ValueError: refused\nDETAIL: ...\n[SQL: INSERT]"
