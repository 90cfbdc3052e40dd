"""Run commands as somebody who has nothing of this environment: another user, an empty folder.

If the tests run as root, the user is one that has no entry in /etc/passwd, as in a container.
Otherwise it is the user of the tests. pip's configuration is that of the tests.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from checks.uv import parse_pip_settings

UID = 10001
_OWN = ("SMA_", "PYTHON", "VIRTUAL_ENV", "DATABASE_URL", "CA_PASSWORD", "PORT", "UV_", "PIP_")


class Stranger:
    """A user with an empty folder, which is removed at the end."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="sma-stranger-", dir="/tmp"))
        self.folder.chmod(0o755)
        self._user: dict[str, Any] = {}
        if os.geteuid() == 0:
            self._user = {"user": UID, "group": UID, "extra_groups": []}
            os.chown(self.folder, UID, UID)
        self.environ = {
            name: value for name, value in os.environ.items() if not name.startswith(_OWN)
        }
        self.environ |= _pip_variables() | {
            "HOME": str(self.folder),
            "PATH": f"{Path(sys.executable).resolve().parent}:/usr/bin:/bin",
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.folder)

    def give(self, file: Path, name: str = "") -> Path:
        """Copy a file or folder of the tests into the folder, and make the user its owner."""
        target = self.folder / (name or file.name)
        target.parent.mkdir(parents=True, exist_ok=True)
        if file.is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(file, target, dirs_exist_ok=True, ignore=ignored)
        else:
            shutil.copyfile(file, target)
        if self._user:
            for each in (*target.rglob("*"), target, *target.relative_to(self.folder).parents):
                os.chown(self.folder / each, UID, UID)
        return target

    def shell(self, script: str, cwd: Path | None = None) -> "subprocess.CompletedProcess[str]":
        """Run a script with `sh -e`, and fail unless it succeeds."""
        done = subprocess.run(
            ["sh", "-e", "-c", script],
            cwd=cwd or self.folder,
            env=self.environ,
            capture_output=True,
            text=True,
            timeout=400,
            check=False,
            **self._user,
        )
        assert done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr}"
        return done

    def start(
        self,
        command: list[str],
        log: Path,
        environ: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> "subprocess.Popen[bytes]":
        """Start a program, which writes into `log`."""
        with log.open("wb") as output:
            return subprocess.Popen(
                command,
                cwd=cwd or self.folder,
                env=dict(self.environ if environ is None else environ),
                stdout=output,
                stderr=output,
                **self._user,
            )


def _pip_variables() -> dict[str, str]:
    """Return the settings of pip as variables, because the user cannot read this user's files."""
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True
    )
    settings = parse_pip_settings(listed.stdout)
    return {f"PIP_{name.upper().replace('-', '_')}": value for name, value in settings.items()}
