"""Simulate a power failure: only data and names that were fsynced are left.

This is more pessimistic than any file system. A name exists only if its directory was fsynced after
the file got the name. A file that was never fsynced is empty.
"""

import os
import stat
from pathlib import Path

import pytest


class Power:
    """Records file contents and directory entries at every os.fsync of this process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._contents: dict[int, bytes] = {}
        self._names: dict[int, dict[str, int]] = {}
        self._held: list[int] = []
        self._fsync = os.fsync
        monkeypatch.setattr(os, "fsync", self._note)

    def close(self) -> None:
        """Close the files that are held open."""
        for descriptor in self._held:
            os.close(descriptor)

    def cut(self, directory: Path, copy: Path) -> Path:
        """Write the durable state of `directory` into `copy`, and return `copy`."""
        self._restore(directory.stat().st_ino, copy)
        return copy

    def _note(self, descriptor: int) -> None:
        self._fsync(descriptor)
        status = os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            self._names[status.st_ino] = {
                each.name: each.inode() for each in os.scandir(descriptor)
            }
        else:
            # Held open, so that no later file gets the same inode number.
            self._held.append(os.dup(descriptor))
            self._contents[status.st_ino] = os.pread(
                os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY), status.st_size, 0
            )

    def _restore(self, inode: int, copy: Path) -> None:
        copy.mkdir(mode=0o700)
        for name, each in self._names.get(inode, {}).items():
            if each in self._names or name == "queue":
                self._restore(each, copy / name)
            else:
                (copy / name).touch(0o600)
                (copy / name).write_bytes(self._contents.get(each, b""))
