"""Read a Containerfile, and carry out its steps as plain commands below a folder.

It knows the instructions that this project's Containerfile has, and fails at any other.
"""

import json
import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.deployment.platforms import ROOT
from tests.support.deployment.stranger import Stranger


@dataclass
class Stage:
    """A stage of an image: its base, its steps in order, and what it tells of its process."""

    base: str
    name: str | None
    steps: list[tuple[str, str]] = field(default_factory=list)
    environ: dict[str, str] = field(default_factory=dict)
    user: str = ""
    workdir: str = "/"
    port: str = ""
    command: list[str] = field(default_factory=list)
    healthcheck: list[str] = field(default_factory=list)


def read_stages(text: str) -> list[Stage]:
    """Return the stages of a Containerfile."""
    stages: list[Stage] = []
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        instruction, _, rest = line.partition(" ")
        if instruction == "FROM":
            base, _, name = rest.partition(" AS ")
            stages.append(Stage(base, name or None))
        elif instruction:
            _add(stages[-1], instruction, rest.strip())
    return stages


def _add(stage: Stage, instruction: str, rest: str) -> None:
    if instruction in {"COPY", "RUN"}:
        stage.steps.append((instruction, rest))
    elif instruction == "WORKDIR":
        stage.workdir = rest
    elif instruction == "ENV":
        stage.environ |= dict(each.split("=", 1) for each in shlex.split(rest))
    elif instruction == "USER":
        stage.user = rest
    elif instruction == "EXPOSE":
        stage.port = rest
    elif instruction == "CMD":
        stage.command = json.loads(rest)
    elif instruction == "HEALTHCHECK":
        stage.healthcheck = json.loads(rest.partition("CMD ")[2])
    else:
        raise AssertionError(f"the tests do not know {instruction}")


def build(stage: Stage, stranger: Stranger) -> None:
    """Carry out the steps of a stage that has no stage before it, below the stranger's folder."""
    workdir = stranger.folder / stage.workdir.lstrip("/")
    for instruction, rest in stage.steps:
        if instruction == "RUN":
            stranger.shell(below(stranger.folder, rest), workdir)
            continue
        *sources, target = rest.split()
        for source in sources:
            inside = target if target.startswith("/") else f"{stage.workdir}/{target}"
            # A folder's content goes into the target; a file goes into it if it ends with a slash.
            if target.endswith("/"):
                inside = f"{inside}{Path(source).name}"
            name = Path(inside.lstrip("/"))
            stranger.give(ROOT / source, name.as_posix())


def below(folder: Path, text: str) -> str:
    """Return a command, or the value of a variable, with /opt below a folder."""
    return re.sub(r"(?<![\w.])/opt\b", f"{folder}/opt", text)
