"""A key-encryption key from a command: 32 bytes or 64 hex digits, and a sentence for all else."""

import os
import sys
import time
from pathlib import Path

import pytest

from birthmark_sma.authority.kek.sources import run_kek_command
from birthmark_sma.config import SECRET_FIELDS, environment_variable
from birthmark_sma.errors import ConfigurationError

KEY = bytes(range(32))
NEEDLE = "n33dle"


def python(program: str) -> str:
    """A command line that runs a program; it has no double quote."""
    return f'{sys.executable} -c "{program}"'


@pytest.mark.parametrize(
    "program",
    [
        "import os; os.write(1, bytes(range(32)))",
        "print(bytes(range(32)).hex())",
        "print(bytes(range(32)).hex().upper(), end=chr(13) + chr(10))",
        "import os, time; os.write(1, bytes(range(20))); time.sleep(0.2);"
        " os.write(1, bytes(range(20, 32)))",
    ],
)
def test_a_key_is_raw_or_hex(program: str) -> None:
    """Written at once or in parts, with or without a line's end."""
    assert run_kek_command(python(program)) == KEY


def test_arguments_are_quoted_as_in_a_shell_that_is_not_there(tmp_path: Path) -> None:
    """No variable is expanded, nothing is piped, no second command is run."""
    file = tmp_path / "a file"
    file.write_text(KEY.hex())
    assert run_kek_command(f"cat '{file}'") == KEY
    with pytest.raises(ConfigurationError, match="exit code"):
        run_kek_command(f"cat '{file}' ; touch {tmp_path}/made")
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("", "is empty"),
        ("   ", "is empty"),
        ("cat 'it", "quotation mark"),
        ("/nowhere/at-all", "cannot be run: No such file"),
        ("a\0b", "cannot be run"),
        ("true", "wrote nothing"),
        (python(f"print('{NEEDLE}')"), "neither 32 raw bytes nor 64 hex digits"),
        (python(f"print('{NEEDLE}' * 1000)"), "wrote more than a key"),
        (python(f"import sys; print('{NEEDLE}', file=sys.stderr); sys.exit(3)"), "exit code 3"),
        (python(f"import os; print('{NEEDLE}', flush=True); os.kill(os.getpid(), 9)"), "signal 9"),
        (python("import os; os.write(1, bytes(33))"), "neither"),
        (python("print('g' * 64)"), "neither"),
    ],
)
def test_what_is_no_key_is_one_sentence(
    command: str, words: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """Threat 28: and not a word of what the command wrote."""
    with pytest.raises(ConfigurationError, match=words) as refused:
        run_kek_command(command)
    assert NEEDLE not in str(refused.value) + "".join(capfd.readouterr())
    assert refused.value.__cause__ is None


@pytest.mark.parametrize(
    "program",
    [
        "import time; time.sleep(60)",
        "import os, time; os.close(1); time.sleep(60)",
        "import itertools, os, time; [(os.write(1, b'0'), time.sleep(0.1)) for _ in range(600)]",
    ],
    ids=["silent", "closed", "dripping"],
)
def test_a_command_that_does_not_end(program: str) -> None:
    began = time.monotonic()
    with pytest.raises(ConfigurationError, match="did not end within 0"):
        run_kek_command(python(program), 0.5)
    assert time.monotonic() - began < 5


def test_what_it_started_ends_with_it(tmp_path: Path) -> None:
    """Nothing of a command that hangs stays behind."""
    script = tmp_path / "script"
    script.write_text(f"#!/bin/sh\nsleep 61.5 &\necho $! > {tmp_path}/pid\nwait\n")
    script.chmod(0o700)
    with pytest.raises(ConfigurationError, match="did not end"):
        run_kek_command(str(script), 1.0)
    pid = int((tmp_path / "pid").read_text())
    for _ in range(50):
        state = Path(f"/proc/{pid}/stat")
        if not state.exists() or " Z " in state.read_text():
            return
        time.sleep(0.05)
    os.kill(pid, 9)
    raise AssertionError("what the command had started went on")


def test_the_command_gets_no_other_secret(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Threat 28: it has the environment for its own credentials, but not ours."""
    ours = {*map(environment_variable, SECRET_FIELDS), "SMA_NEW_CA_PASSWORD"}
    assert ours >= {"CA_PASSWORD", "DATABASE_URL", "SMA_RATE_STORE"}
    for name in (*ours, "KMS_TOKEN"):
        monkeypatch.setenv(name, NEEDLE)
    place = tmp_path / "environ"
    program = f"import os; open('{place}', 'w').write(str(sorted(os.environ))); print('0' * 64)"
    assert run_kek_command(python(program)) == bytes(32)
    told = place.read_text()
    assert "KMS_TOKEN" in told
    for name in ours:
        assert name not in told
