"""What is printed to be copied into a shell means what it says there."""

import shlex

import pytest

from birthmark_sma.cli.output import as_argument, quoted


@pytest.mark.parametrize(
    "serial", ["camera-1", "O'Hara", "'; touch owned; '", '$(id) `id` "x"', "'"]
)
def test_a_shell_reads_the_serial(serial: str) -> None:
    """Threat: devices bring their own serials, and an operator copies the advice."""
    assert shlex.split(f"x {quoted(serial)}") == ["x", serial]
    assert as_argument(serial) == quoted(serial)


def test_a_serial_is_no_option() -> None:
    assert shlex.split(as_argument("--yes")) == ["--", "--yes"]
