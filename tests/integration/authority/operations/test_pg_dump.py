"""pg_dump on a database that hangs: the backup ends."""

import io
import time
from pathlib import Path

import pytest

from birthmark_sma.authority.operations import pg_dump
from birthmark_sma.authority.operations.pg_dump import Program
from birthmark_sma.errors import BackupError

URL = "postgresql://sma@127.0.0.1/sma"
MIB = 1 << 20


def program_of(folder: Path, *lines: str) -> Program:
    """Return a program in the place of pg_dump."""
    path = folder / "pg_dump"
    path.write_text("\n".join(["#!/bin/sh", *lines]), encoding="ascii")
    path.chmod(0o700)
    return Program(str(path), 16)


def dumped(program: Program) -> int:
    """Return how many bytes a program writes into a backup."""
    file = io.BytesIO()
    pg_dump.dump(program, URL, "snapshot", file, lambda *_: None)
    return len(file.getvalue())


def test_a_dump_that_hangs_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """pg_dump waits for ever for a frozen host, which acknowledges every packet."""
    monkeypatch.setattr(pg_dump, "_SILENT_SECONDS", 1.0)
    began = time.monotonic()
    with pytest.raises(BackupError, match="Look for a frozen database"):
        dumped(program_of(tmp_path, "echo begun", "exec sleep 300"))
    assert time.monotonic() - began < 60


def test_a_dump_that_takes_long_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may take longer than the limit while it writes."""
    monkeypatch.setattr(pg_dump, "_SILENT_SECONDS", 6.0)
    some = f"head -c {MIB} /dev/zero"
    written = dumped(program_of(tmp_path, some, *["sleep 2", some] * 4))
    assert written == 5 * MIB
