"""Build and run the checkers of `vectors/checkers/`, as a developer of each language would.

Python, Node, Java and C are required: a test fails if one is missing, and names the command that
installs it. Go and Kotlin run only if there is a compiler; `make setup-tool-chains` tries to
install both. Compiled checkers are cached in .cache under a digest of sources, compiler and this
file.
"""

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

VECTORS = Path(__file__).parents[3] / "vectors"
SOURCES = VECTORS / "checkers"
_SECONDS = 300
_CACHE = VECTORS.parent / ".cache"
_KOTLIN = _CACHE / "tool-chains" / "node_modules" / "kotlin-compiler" / "bin"

ALWAYS = ("python", "javascript", "java", "c")
COMPILERS = {
    "java": shutil.which("javac"),
    "c": shutil.which("cc"),
    "go": shutil.which("go", path=str(Path(sys.executable).parent)) or shutil.which("go"),
    "kotlin": shutil.which("kotlinc", path=str(_KOTLIN)) or shutil.which("kotlinc"),
}
LANGUAGES = (*ALWAYS, *(each for each in ("go", "kotlin") if COMPILERS[each]))


@dataclass(frozen=True)
class Checker:
    """A program that checks test vectors, and seals and opens camera tokens."""

    language: str
    command: tuple[str, ...]

    def run(self, *arguments: str, stdin: str = "") -> "subprocess.CompletedProcess[str]":
        """Run the program with a timeout of 300 s. Its exit code is not checked."""
        return subprocess.run(
            [*self.command, *arguments],
            input=stdin,
            check=False,
            capture_output=True,
            text=True,
            timeout=_SECONDS,
        )

    def check(self, vectors: Path = VECTORS) -> "subprocess.CompletedProcess[str]":
        """Check a directory of test vectors."""
        return self.run("check", str(vectors))

    def seal(self, nuc_hash: bytes, master_key: bytes, table_id: int, key_index: int) -> Any:
        """Return a camera token that the program seals, as JSON."""
        given = {
            "nuc_hash": nuc_hash.hex(),
            "master_key": master_key.hex(),
            "table_id": table_id,
            "key_index": key_index,
        }
        ran = self.run("seal", stdin=json.dumps(given))
        assert ran.returncode == 0, ran.stderr
        return json.loads(ran.stdout)

    def open(self, camera_token: dict[str, Any], master_key: bytes) -> bytes | None:
        """Return the NUC hash that the program opens, or None if it refuses the token."""
        given = {"camera_token": camera_token, "master_key": master_key.hex()}
        ran = self.run("open", stdin=json.dumps(given))
        return bytes.fromhex(ran.stdout) if ran.returncode == 0 else None


@cache
def build(language: str, sources: Path = SOURCES) -> Checker:
    """Build the checker of a language, or take it from the cache."""
    source = sources / language
    if language == "python":
        return Checker(language, (sys.executable, str(source / "check.py")))
    if language == "javascript":
        return Checker(language, (_tool("node"), str(source / "check.mjs")))
    makers: dict[str, Callable[[str, Path, Path], None]] = {
        "java": _java,
        "c": _c,
        "go": _go,
        "kotlin": _kotlin,
    }
    compiler = COMPILERS[language]
    assert compiler is not None, f"No compiler for {language}. Type: make setup-tool-chains"
    files = sorted(each for each in sources.rglob("*") if each.is_file())
    made = _made(language, compiler, files, partial(makers[language], compiler, source))
    if language in {"c", "go"}:
        return Checker(language, (str(made / "check"),))
    quick = ("-Xshare:auto", "-XX:TieredStopAtLevel=1")
    paths = f"{made}{os.pathsep}{made / 'check.jar'}"
    return Checker(language, (_tool("java"), *quick, "-cp", paths, "Check"))


@cache
def build_go(source: Path) -> Path:
    """Build a Go program of one file, or take it from the cache; return its path.

    The compiler must be there: see COMPILERS.
    """
    compiler = COMPILERS["go"]
    assert compiler is not None

    def make(made: Path) -> None:
        _compile([compiler, "build", "-o", str(made / "check"), str(source)])

    return _made("go", compiler, [source], make) / "check"


def _made(
    language: str, compiler: str, sources: Sequence[Path], make: Callable[[Path], None]
) -> Path:
    """Return the folder of a program in the cache, after `make` has filled it.

    A file lock makes parallel test processes build it only once. The folder is renamed when it is
    complete, so an interrupted build is never used.
    """
    made = _CACHE / "checkers" / f"{language}-{_digest(compiler, sources)}"
    made.parent.mkdir(parents=True, exist_ok=True)
    with made.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            unfinished = made.with_suffix(".unfinished")
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir()
            make(unfinished)
            unfinished.rename(made)
    return made


def _digest(compiler: str, sources: Sequence[Path]) -> str:
    """Return a cache key: a digest of this file, the compiler's time stamp and all sources."""
    parts = [Path(compiler).resolve().stat().st_mtime_ns.to_bytes(8, "big")]
    for file in (Path(__file__), *sources):
        parts += [file.name.encode(), file.read_bytes()]
    return hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()[
        :20
    ]


def _java(compiler: str, source: Path, made: Path) -> None:
    _compile([compiler, "-Xlint:all", "-Werror", "-d", str(made), *_files(source, "*.java")])


def _kotlin(compiler: str, source: Path, made: Path) -> None:
    """Compile the Kotlin checker. It parses JSON with the Java checker's class."""
    json_reader = source.parent / "java" / "Json.java"
    _compile([_tool("javac"), "-d", str(made), str(json_reader)])
    strict = ["-Werror", "-Wextra", "-cp", str(made), "-include-runtime"]
    _compile([compiler, *strict, "-d", str(made / "check.jar"), *_files(source, "*.kt")])


def _c(compiler: str, source: Path, made: Path) -> None:
    strict = ["-std=c17", "-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Werror", "-O1"]
    sanitized = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    program = ["-o", str(made / "check"), *_files(source, "*.c"), "-lcrypto"]
    _compile([compiler, *strict, *sanitized, *program])


def _go(compiler: str, source: Path, made: Path) -> None:
    _compile([compiler, "build", "-o", str(made / "check"), "."], cwd=source)


def _files(source: Path, pattern: str) -> list[str]:
    return [str(file) for file in sorted(source.glob(pattern))]


def _compile(command: list[str], cwd: Path | None = None) -> None:
    ran = subprocess.run(
        command, check=False, capture_output=True, text=True, timeout=_SECONDS, cwd=cwd
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr


def _tool(name: str) -> str:
    found = shutil.which(name)
    assert found is not None, f"`{name}` is missing. Type: make setup-tool-chains"
    return found
