"""Files that hold secrets: for their owner alone, and whole or absent whatever happens."""

import os
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from birthmark_sma.errors import PrivateFileError
from birthmark_sma.runtime import secret_files
from birthmark_sma.runtime.secret_files import (
    make_private_directory,
    read_private_file,
    write_private_file,
)

SECRET = b"secret\x00\xff\n"
CONTENT = SECRET * 1_000

KILLED_BEFORE_A_LINE = """
import os, sys
from pathlib import Path
from birthmark_sma.runtime import secret_files

path, content, replace, wanted = Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])
content = bytes.fromhex(content) * 1_000
watched = secret_files.write_private_file.__code__, secret_files.sync_directory.__code__
lines = 0

def trace(frame, what, _):
    global lines
    if frame.f_code not in watched:
        return None
    if what == "line":
        lines += 1
        if lines == wanted:
            os.kill(os.getpid(), 9)
    return trace

sys.settrace(trace)
secret_files.write_private_file(path, content, replace=replace == "replace")
"""


def mode_of(path: Path) -> int:
    """Return the permissions of a file."""
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def umask() -> Iterator[Any]:
    """Change the process's umask until the test ends."""
    before = os.umask(0)
    yield os.umask
    os.umask(before)


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077, 0o177, 0o777], ids=oct)
@pytest.mark.parametrize("replace", [False, True])
def test_only_the_owner_reads_it(tmp_path: Path, umask: Any, mask: int, replace: bool) -> None:
    """Threat 29: mode 0600 whatever the umask, in a new file and in one that is replaced."""
    path = tmp_path / "file"
    if replace:
        path.write_bytes(b"old")
        path.chmod(0o644)
    umask(mask)
    write_private_file(path, CONTENT, replace=replace)
    assert mode_of(path) == 0o600
    assert read_private_file(path) == CONTENT
    assert list(tmp_path.iterdir()) == [path]


def test_it_is_never_readable_in_between(
    tmp_path: Path, umask: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Threat 29: at the moment in which the content is written, only the owner can read it."""
    modes: list[int] = []
    fsync = os.fsync

    def watch(descriptor: int) -> None:
        modes.extend(mode_of(each) for each in tmp_path.iterdir())
        fsync(descriptor)

    umask(0)
    monkeypatch.setattr(os, "fsync", watch)
    write_private_file(tmp_path / "file", CONTENT)
    assert set(modes) == {0o600}


def test_an_existing_file_is_never_overwritten(tmp_path: Path) -> None:
    """It stays as it was, and nothing else is left behind."""
    path = tmp_path / "file"
    path.write_bytes(b"precious")
    with pytest.raises(PrivateFileError, match="never overwritten"):
        write_private_file(path, CONTENT)
    assert path.read_bytes() == b"precious"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_made_meanwhile_is_not_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever was faster keeps the name, even if that was between the question and the answer."""
    path = tmp_path / "file"
    link = os.link

    def rival_first(source: Any, target: Any) -> None:
        path.write_bytes(b"precious")
        link(source, target)

    monkeypatch.setattr(os, "link", rival_first)
    with pytest.raises(PrivateFileError, match="never overwritten"):
        write_private_file(path, CONTENT)
    assert path.read_bytes() == b"precious"
    assert [each for each in tmp_path.iterdir() if b"secret" in each.read_bytes()] == []


def test_a_link_that_leads_nowhere_is_not_followed(tmp_path: Path) -> None:
    """A symbolic link in the place of the file sends no secret elsewhere."""
    path, elsewhere = tmp_path / "file", tmp_path / "elsewhere"
    path.symlink_to(elsewhere)
    with pytest.raises(PrivateFileError):
        write_private_file(path, CONTENT)
    assert not elsewhere.exists()


@pytest.mark.parametrize("replace", [False, True])
def test_killed_at_any_line(tmp_path: Path, replace: bool) -> None:
    """Threat 29: after SIGKILL before any line, the file is whole, old or absent, never partial.

    And the next attempt succeeds, whatever was left lying about.
    """
    allowed = {b"old", CONTENT} if replace else {None, CONTENT}
    for line in range(1, 60):
        folder = tmp_path / f"{line}"
        folder.mkdir()
        path = folder / "file"
        if replace:
            path.write_bytes(b"old")
        ended = _killed_at(line, path, replace=replace)
        content = path.read_bytes() if path.exists() else None
        assert content in allowed, f"killed before line {line}"
        assert all(mode_of(each) == 0o600 for each in folder.iterdir() if each != path)
        if content != CONTENT:
            write_private_file(path, CONTENT, replace=replace)
        assert path.read_bytes() == CONTENT
        if ended == 0:
            break
    assert ended == 0
    assert line > 8


def _killed_at(line: int, path: Path, *, replace: bool) -> int:
    word = "replace" if replace else "new"
    arguments = [str(path), SECRET.hex(), word, str(line)]
    return subprocess.run(
        [sys.executable, "-I", "-c", KILLED_BEFORE_A_LINE, *arguments], check=False
    ).returncode


@pytest.mark.parametrize("step", ["fsync", "link", "open"])
def test_a_step_that_fails_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """Threat 29: a disk that refuses gives a sentence, not a part of a file."""

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    path = tmp_path / "file"
    with monkeypatch.context() as broken:
        broken.setattr(os, step, refuse)
        with pytest.raises(PrivateFileError, match="cannot be written: No space left on device"):
            write_private_file(path, CONTENT)
        assert not path.exists()
    write_private_file(path, CONTENT)
    assert read_private_file(path) == CONTENT


def test_it_is_on_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut after the return loses neither the content nor the name."""
    steps: list[str] = []
    fsync, link = os.fsync, os.link

    def watch_fsync(descriptor: int) -> None:
        is_directory = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        steps.append("directory on disk" if is_directory else "content on disk")
        fsync(descriptor)

    def watch_link(source: Any, target: Any) -> None:
        steps.append("named")
        link(source, target)

    monkeypatch.setattr(os, "fsync", watch_fsync)
    monkeypatch.setattr(os, "link", watch_link)
    write_private_file(tmp_path / "file", CONTENT)
    assert steps == ["content on disk", "named", "directory on disk"]


def test_two_writers_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Threat 29: the file is that of one of them, whole, and the other is told."""
    path = tmp_path / "file"
    link = os.link
    linking, written = threading.Event(), threading.Event()
    outcomes: list[str] = []

    def wait_before_linking(source: Any, target: Any) -> None:
        if threading.current_thread().name == "first":
            linking.set()
            written.wait(2)
        link(source, target)

    def wait_before_writing(descriptor: int) -> None:
        # The second has an empty file at this point, and goes on once the first has its name.
        if threading.current_thread().name == "second":
            os.ftruncate(descriptor, 0)
            written.set()
            first.join(5)

    def write(content: bytes) -> None:
        try:
            write_private_file(path, content)
            outcomes.append("written")
        except PrivateFileError as error:
            outcomes.append(str(error))

    monkeypatch.setattr(os, "link", wait_before_linking)
    monkeypatch.setattr(os, "fsync", wait_before_writing)
    first = threading.Thread(target=write, args=[b"1" * 1_000], name="first")
    second = threading.Thread(target=write, args=[b"2" * 1_000], name="second")
    first.start()
    linking.wait(5)
    second.start()
    second.join(10)
    assert sorted(outcome == "written" for outcome in outcomes) == [False, True]
    assert path.read_bytes() == b"1" * 1_000


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    """The sentence names the file, which the caller gave."""
    with pytest.raises(PrivateFileError, match="cannot be written: No such file or directory"):
        write_private_file(tmp_path / "absent" / "file", CONTENT)


# --- reading


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o620, 0o602, 0o610, 0o777], ids=oct)
def test_a_file_open_to_others_is_refused(tmp_path: Path, mode: int) -> None:
    """Threat 29: a secret that others could read or replace is not used."""
    path = tmp_path / "file"
    path.write_bytes(CONTENT)
    path.chmod(mode)
    with pytest.raises(PrivateFileError, match=f"Type: chmod 600 {path}"):
        read_private_file(path)
    path.chmod(0o600)
    assert read_private_file(path) == CONTENT
    path.chmod(0o400)
    assert read_private_file(path) == CONTENT


def test_what_is_not_there_is_told(tmp_path: Path) -> None:
    """Neither a missing file nor a directory ends in a traceback."""
    with pytest.raises(PrivateFileError, match="does not exist"):
        read_private_file(tmp_path / "absent")
    with pytest.raises(PrivateFileError, match="cannot be read"):
        read_private_file(tmp_path)


# --- directories


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077], ids=oct)
def test_directories_are_private(tmp_path: Path, umask: Any, mask: int) -> None:
    """Threat 29: the directory, and every one above it that had to be made, has mode 0700."""
    umask(mask)
    path = tmp_path / "above" / "directory"
    make_private_directory(path)
    assert mode_of(path) == 0o700
    assert mode_of(path.parent) == 0o700


def test_a_directory_that_exists_stays_as_it_is(tmp_path: Path) -> None:
    """An operator's own permissions are not changed."""
    tmp_path.chmod(0o750)
    make_private_directory(tmp_path)
    assert mode_of(tmp_path) == 0o750


def test_a_file_in_the_place_of_a_directory(tmp_path: Path) -> None:
    """It is told in a sentence."""
    (tmp_path / "file").touch()
    with pytest.raises(PrivateFileError, match="cannot be made"):
        make_private_directory(tmp_path / "file")
    with pytest.raises(PrivateFileError, match="cannot be made"):
        make_private_directory(tmp_path / "file" / "below")


def test_a_directory_can_be_synced(tmp_path: Path) -> None:
    """Renames survive a power cut."""
    secret_files.sync_directory(tmp_path)
