"""The layout of the code stays one that a newcomer can follow: ARCHITECTURE.md says why."""

import ast
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src"
MOST_FILES_IN_A_FOLDER = 14
MOST_LINES_OF_A_MODULE = 400
UNBOUNDED = {"src/birthmark_sma/cli/commands", "src/birthmark_sma/storage/migrations/versions"}
"""A module for each command, and one for each migration that was ever made."""
QUESTION_WORDS = ("What", "Who", "Whoever", "Whether", "How", "Where")
MOST_QUESTIONS = 0.02
MOST_MODULES_THAT_ASK = 2
"""Modules outside storage/ and the stores that ask which database it is, to tell an operator."""


def python_files(folder: Path) -> Iterator[Path]:
    """Return the Python files below a folder."""
    return (file for file in folder.rglob("*.py") if "__pycache__" not in file.parts)


@pytest.mark.parametrize("folder", ["src", "tests"])
def test_no_folder_has_many_files(folder: str) -> None:
    """A folder is a feature or a mechanism."""
    counts = Counter(
        file.parent.relative_to(ROOT).as_posix() for file in python_files(ROOT / folder)
    )
    large = {name: n for name, n in counts.items() if n > MOST_FILES_IN_A_FOLDER}
    assert not large.keys() - UNBOUNDED, large


def test_no_module_is_long() -> None:
    """A module has one purpose, and is read at once."""
    lengths = {
        file.relative_to(ROOT).as_posix(): len(file.read_text(encoding="utf-8").splitlines())
        for file in python_files(SOURCE)
    }
    assert {name: n for name, n in lengths.items() if n > MOST_LINES_OF_A_MODULE} == {}


DESCRIBED_AS_A_WHOLE = (
    "cli/commands",
    "operations/doctor",
    "web/dashboard",
    "/migrations",
    "/versions",
)
"""Folders of which ARCHITECTURE.md says what each module is, without naming the modules."""


def test_the_map_names_every_module() -> None:
    """The tree in ARCHITECTURE.md. What it names exists, as other links of that page do."""
    tree = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8").split("```")[1]
    named = set(re.findall(r"[\w.]+", tree.replace(".py", "")))
    missing = [
        module_name(file)
        for file in python_files(SOURCE)
        if file.name != "__init__.py"
        and not file.parent.as_posix().endswith(DESCRIBED_AS_A_WHOLE)
        and file.stem not in named
    ]
    assert missing == []


def module_name(file: Path) -> str:
    """Return the dotted name of a module of src/."""
    name = ".".join(file.relative_to(SOURCE).with_suffix("").parts)
    return name.removesuffix(".__init__")


def imports_of(file: Path, modules: set[str]) -> set[str]:
    """Return the modules of src/ that a module imports, also for type checking alone."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner in modules else node.module)
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return (found & modules) - {module_name(file)}


def find_cycle(imports: dict[str, set[str]]) -> list[str] | None:
    """Return a cycle of imports, if there is one: remove modules that import nothing until none."""
    left = {name: set(each) for name, each in imports.items()}
    while leaves := [name for name, each in left.items() if not each]:
        for name in leaves:
            del left[name]
        for each in left.values():
            each.difference_update(leaves)
    if not left:
        return None
    path = [next(iter(left))]
    while path[-1] not in path[:-1]:
        path.append(min(left[path[-1]]))
    return path[path.index(path[-1]) :]


def test_imports_have_no_cycle() -> None:
    """Not even those that only type checkers follow."""
    files = {module_name(file): file for file in python_files(SOURCE)}
    modules = set(files)
    assert find_cycle({name: imports_of(file, modules) for name, file in files.items()}) is None


def test_a_cycle_would_be_found() -> None:
    assert find_cycle({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}) == ["b", "c", "b"]


def docstrings(folder: Path) -> Iterator[str]:
    """Return the docstrings of the modules, classes and functions below a folder."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for file in python_files(folder):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, kinds) and (text := ast.get_docstring(node)):
                yield text


def test_docstrings_begin_with_what_the_code_does() -> None:
    """A question word at the start hides the subject."""
    texts = list(docstrings(SOURCE))
    questions = [text for text in texts if text.split()[0].rstrip(",") in QUESTION_WORDS]
    assert len(questions) <= MOST_QUESTIONS * len(texts), questions


def test_stores_alone_ask_for_the_database() -> None:
    """What differs by database is in storage/, and in two files of a feature."""
    stores = {"store_postgresql.py", "store_sqlite.py"}
    asking = [
        file.relative_to(SOURCE).as_posix()
        for file in python_files(SOURCE / "birthmark_sma")
        if file.name not in stores
        and "storage" not in file.parts
        and "dialect" in file.read_text(encoding="utf-8").lower()
    ]
    assert len(asking) <= MOST_MODULES_THAT_ASK, asking
