"""Run the code blocks of a page as a reader would: in order, in one folder, in one terminal."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psycopg
import yaml

from tests.docs.blocks import ROOT, Block
from tests.docs.forked_sma import offer_sma
from tests.support.http.ports import free_port
from tests.support.programs.server import SMA, read_facts

SECONDS = 120
_DEFAULT_URL = "http://127.0.0.1:8000"
_FIXED_PORT = re.compile(r"\b(?:18\d{3}|8010)\b")
_SERVE = re.compile(r"^sma serve\b([^#\n&]*)(?:#.*)?\Z", re.MULTILINE)
_STATUS_LINE = re.compile(r"\n\d{3}\n\Z")
_COMPARED = frozenset({"type", "title", "status", "validation_result"})
"""Members of a response whose values are always the same."""
_PREFIX = re.compile(r"[A-Z]+-")
_OF_THE_AUTHORITY = ("DATABASE_URL", "CA_PASSWORD", "SMA_DATA_DIR")
# The blocks of a page share one interpreter. What each prints ends with a zero byte.
_INTERPRETER = """
import sys, traceback
names = {"__name__": "__page__"}
for line in sys.stdin:
    try:
        exec(compile(__import__("json").loads(line), "the page", "exec"), names)
    except Exception:
        traceback.print_exc(file=sys.stdout)
        print("FAILED")
    print(end="\\0", flush=True)
"""


class Session:
    """A terminal in an empty folder, with `sma`, `python` and the folders of a clone.

    `url` is the server that the page calls http://127.0.0.1:8000.
    """

    def __init__(self, folder: Path, url: str, environ: Mapping[str, str]) -> None:
        self._folder = folder
        self._url = url
        self._environ = {**environ, "TMPDIR": str(folder / "tmp"), "BACKUPS": str(folder / "b")}
        self._environ["PATH"] = f"{folder / 'bin'}:{self._environ['PATH']}"
        self._ports: dict[str, str] = {}
        self._servers: list[subprocess.Popen[str]] = []
        self._interpreter: subprocess.Popen[str] | None = None
        self._responses: list[tuple[Block, object]] = []
        self.output = ""
        for name in ("bin", "tmp", "b"):
            (folder / name).mkdir()
        for name in ("examples", "vectors"):
            (folder / name).symlink_to(ROOT / name)
        # Not a link: a link would be a Python without the packages of this environment.
        python = folder / "bin" / "python"
        python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n', encoding="utf-8")
        python.chmod(0o755)
        self._programs = contextlib.ExitStack()

    def __enter__(self) -> "Session":
        self._programs.enter_context(offer_sma(self._folder / "bin" / "sma"))
        return self

    def __exit__(self, *_: object) -> None:
        self._programs.close()
        for process in (*self._servers, self._interpreter):
            if process is not None:
                process.kill()
                process.communicate()

    def do(self, block: Block) -> None:
        """Run or check a block. Raises AssertionError with what was printed."""
        text = self._adapt(block.text)
        if block.mark == "response":
            self._check_response(block, json.loads(block.text))
            return
        self._end_responses()
        if block.mark == "file":
            (self._folder / block.argument).write_text(text, encoding="utf-8")
        if block.language in {"json", "toml", "yaml"}:
            _PARSERS[block.language](text)
        elif block.mark == "file":
            pass
        elif block.language == "text":
            _compare(block, self.output)
        elif block.language == "sh":
            codes = [int(code) for code in block.argument.split(",")] if block.argument else [0]
            self._run_shell(block, text, codes)
        elif block.language == "python":
            self._run_python(block, text)
        else:
            assert block.language == "sql", f"{block}: nothing runs {block.language}"
            self._run_sql(text)

    def end(self) -> None:
        """Check what the last block left to check."""
        self._end_responses()

    def _adapt(self, text: str) -> str:
        """Return a block with this test's server and free ports in place of those of the page."""
        text = text.replace(_DEFAULT_URL, self._url)
        return _FIXED_PORT.sub(lambda port: self._ports.setdefault(port[0], str(free_port())), text)

    def _run_shell(self, block: Block, text: str, codes: Sequence[int]) -> None:
        serve = _SERVE.search(text.strip())
        if serve:
            self._start_server(serve[1].split())
            return
        after = self._folder / "tmp" / "environment"
        script = f"cd {self._folder}\n{text}\nenv -0 > {after}"
        # A file and not a pipe: a program that a failed block leaves behind would keep it open.
        with tempfile.TemporaryFile("w+", encoding="utf-8") as printed:
            shell = subprocess.Popen(
                ["bash", "-euo", "pipefail", "-c", script],
                env=self._environ,
                stdin=subprocess.DEVNULL,
                stdout=printed,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                code: int | None = shell.wait(SECONDS)
            except subprocess.TimeoutExpired:
                code = None
            with contextlib.suppress(ProcessLookupError):
                os.killpg(shell.pid, signal.SIGKILL)
            shell.wait()
            printed.seek(0)
            self.output = printed.read()
        assert code in codes, f"{block} ended with {code}:\n{self.output}"
        if code == 0:
            entries = after.read_text(encoding="utf-8").rstrip("\0").split("\0")
            self._environ = dict(entry.split("=", 1) for entry in entries)

    def _start_server(self, arguments: list[str]) -> None:
        """Start the server of the page, with SQLite in its folder, and use it from now on."""
        for name in _OF_THE_AUTHORITY:
            self._environ.pop(name, None)
        process = subprocess.Popen(
            [*SMA, "serve", "--json", "--port", "0", *arguments],
            cwd=self._folder,
            env=self._environ | {"SMA_TABLES": "10", "SMA_CA_KEY_TYPE": "ec-p256"},
            stdout=subprocess.PIPE,
            text=True,
        )
        self._servers.append(process)
        self._url = read_facts(process)["url"]

    def _run_python(self, block: Block, text: str) -> None:
        if self._interpreter is None:
            self._interpreter = subprocess.Popen(
                [sys.executable, "-c", _INTERPRETER],
                cwd=self._folder,
                env=self._environ,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        assert self._interpreter.stdin is not None
        assert self._interpreter.stdout is not None
        self._interpreter.stdin.write(json.dumps(text) + "\n")
        self._interpreter.stdin.flush()
        self.output = ""
        while not self.output.endswith("\0"):
            character = self._interpreter.stdout.read(1)
            assert character, f"{block}: the interpreter ended:\n{self.output}"
            self.output += character
        self.output = self.output.rstrip("\0")
        assert not self.output.endswith("FAILED\n"), f"{block}:\n{self.output}"

    def _run_sql(self, text: str) -> None:
        with psycopg.connect(self._environ["DATABASE_URL"]) as connection:
            connection.read_only = True
            for statement in filter(str.strip, text.split(";")):
                connection.execute(statement.encode())

    def _check_response(self, block: Block, documented: object) -> None:
        self._responses.append((block, documented))

    def _end_responses(self) -> None:
        """Of the documented responses to one command, one must have the fields of the real one."""
        if self._responses:
            real = json.loads(_STATUS_LINE.sub("\n", self.output))
            alike = [_has_same_fields(documented, real) for _, documented in self._responses]
            assert any(alike), f"{self._responses[0][0]} is not like\n{self.output}"
        self._responses = []


_PARSERS = {"json": json.loads, "toml": tomllib.loads, "yaml": yaml.safe_load}


def _has_same_fields(documented: Any, real: Any) -> bool:
    """Compare the members of an object, and of the objects in its lists."""
    if isinstance(documented, dict) and isinstance(real, dict):
        return set(documented) == set(real) and all(
            _is_alike(name, value, real[name]) for name, value in documented.items()
        )
    if isinstance(documented, list) and isinstance(real, list):
        return all(any(_has_same_fields(one, other) for one in documented) for other in real)
    return type(documented) is type(real) or real is None


def _is_alike(name: str, documented: Any, real: Any) -> bool:
    """Compare a member: lists by their objects, a verdict or problem by its value."""
    if isinstance(documented, list):
        return _has_same_fields(documented, real)
    if not isinstance(documented, str | int):
        return True
    prefix = _PREFIX.match(str(documented))
    if name in _COMPARED:
        return bool(documented == real)
    return prefix is None or real is None or str(real).startswith(prefix[0])


def _compare(block: Block, output: str) -> None:
    """Check that the lines of a block are among those that were printed, in this order."""
    printed = iter(output.splitlines())
    for line in filter(str.strip, block.text.splitlines()):
        pattern = re.compile(re.escape(line.strip()).replace(r"\*", ".*"))
        found = any(pattern.fullmatch(each.strip()) for each in printed)
        assert found, f"{block}: no line like {line!r} in\n{output}"
