"""The image works: its steps run as plain commands, and its process as its user.

No container engine is needed. Nothing but /opt/birthmark-sma goes into the last stage, so all else
is deleted before the process starts, and its user can write nowhere.
"""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import httpx2
import pytest

from tests.support.access_keys import bearer
from tests.support.deployment import containerfile
from tests.support.deployment.containerfile import Stage, below, build, read_stages
from tests.support.deployment.platforms import ROOT
from tests.support.deployment.stranger import UID, Stranger
from tests.support.http.ports import free_port
from tests.support.programs.running import wait_until

BUILD, IMAGE = read_stages((ROOT / "Containerfile").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def image() -> Iterator[Stranger]:
    """Yield a user whose folder has the image's files, and who cannot change them."""
    with Stranger() as stranger:
        build(BUILD, stranger)
        assert IMAGE.steps == [("COPY", "--from=build /opt/birthmark-sma /opt/birthmark-sma")]
        for each in ("source", "opt/build", "opt/wheels"):
            shutil.rmtree(stranger.folder / each)
        for file in (stranger.folder, *stranger.folder.rglob("*")):
            if not file.is_symlink():
                file.chmod(file.stat().st_mode & 0o555)
            if os.geteuid() == 0:
                os.chown(file, 0, 0, follow_symlinks=False)
        yield stranger


def environ_in(image: Stranger, **given: str) -> dict[str, str]:
    """Return the variables of the image, and those given to its container."""
    own = {name: below(image.folder, value) for name, value in IMAGE.environ.items()}
    # The interpreter of the tests stands for the one of the base image.
    own["PATH"] = f"{own['PATH'].partition(':')[0]}:{image.environ['PATH']}"
    return own | given


def run(image: Stranger, *command: str, **given: str) -> "subprocess.CompletedProcess[str]":
    """Run a command in the container, to its end."""
    log = Path("/tmp") / f"{image.folder.name}.log"
    environ = environ_in(image, **given)
    program = shutil.which(command[0], path=environ["PATH"])
    assert program is not None, command[0]
    process = image.start(
        [program, *(below(image.folder, each) for each in command[1:])],
        log,
        environ,
        image.folder / IMAGE.workdir.lstrip("/"),
    )
    code = process.wait(120)
    said = log.read_text(encoding="utf-8")
    log.unlink()
    return subprocess.CompletedProcess(command, code, said, "")


def test_the_image_runs_as_its_user(image: Stranger, postgres_url: str, tmp_path: Path) -> None:
    """`sma init` with a folder for the root's key, a key, the server, and its health check."""
    port = str(free_port())
    given = {"DATABASE_URL": postgres_url, "CA_PASSWORD": "a passphrase for tests alone"}
    small = {"SMA_TABLES": "5", "SMA_CA_KEY_TYPE": "ec-p256"}
    with Stranger() as home:
        key_file = home.folder / "root.key"
        made = run(image, "sma", "init", "--root-key-file", str(key_file), **given, **small)
        assert made.returncode == 0, made.stdout
        assert key_file.stat().st_mode & 0o777 == 0o600
    created = run(image, "sma", "keys", "create", "me", "--scope", "admin", "--json", **given)
    key = json.loads(created.stdout)["key"]
    assert run(image, *IMAGE.healthcheck, **given, PORT=port).returncode == 1, "nothing runs yet"
    environ = environ_in(image, **given, PORT=port)
    program = shutil.which(IMAGE.command[0], path=environ["PATH"])
    assert program is not None
    log = tmp_path / "log"
    server = image.start([program, *IMAGE.command[1:]], log, environ, image.folder / "opt")
    try:
        wait_until(lambda: run(image, *IMAGE.healthcheck, **given, PORT=port).returncode == 0, 60)
        with closing(httpx2.Client(trust_env=False, headers=bearer(key))) as client:
            answer = client.get(f"http://127.0.0.1:{port}/stats")
        assert answer.status_code == 200, answer.text
        server.terminate()
        assert server.wait(30) == 0, log.read_text()
    finally:
        server.kill()


def test_the_image_has_no_tools_to_build_with(image: Stranger) -> None:
    """Neither pip nor a build system, and no file that its user may change."""
    installed = image.folder / "opt" / "birthmark-sma"
    [packages] = installed.glob("lib/python3*/site-packages")
    names = {file.name for file in (*packages.iterdir(), *(installed / "bin").iterdir())}
    assert {"birthmark_sma", "cryptography", "sma"} <= names
    assert not names & {"pip", "pip3", "hatchling", "setuptools", "wheel"}
    files = [file for file in image.folder.rglob("*") if not file.is_symlink()]
    assert not [file for file in files if file.stat().st_mode & 0o222]
    assert len(files) > 1000


def test_the_image_is_built_from_hashes_and_for_no_root() -> None:
    installs = [step for kind, step in BUILD.steps if kind == "RUN" and "pip install" in step]
    assert len(installs) == 3
    for step in installs:
        assert ("--require-hashes" in step) != ("--no-index --no-deps" in step)
    assert IMAGE.user == f"{UID}:{UID}"
    assert IMAGE.port == IMAGE.environ["PORT"]
    assert BUILD.base == IMAGE.base
    assert "slim" in IMAGE.base


def test_only_what_is_copied_is_sent_to_the_builder() -> None:
    """No .git, no sma-data, no .env: .dockerignore names what the build copies, and no more."""
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    allowed = {line[1:] for line in lines if line.startswith("!")}
    copied = [
        source for kind, step in BUILD.steps if kind == "COPY" for source in step.split()[:-1]
    ]
    assert "*" in lines
    for source in copied:
        assert (ROOT / source).exists()
        assert {source, str(Path(source).parent)} & allowed, source
    assert {Path(each).parts[0] for each in allowed} == {Path(each).parts[0] for each in copied}


def test_an_unknown_instruction_is_noticed() -> None:
    with pytest.raises(AssertionError, match="ADD"):
        read_stages("FROM base\nADD x y")
    [stage] = read_stages("FROM base\nRUN a \\\n  b")
    assert stage == Stage("base", None, steps=[("RUN", "a    b")])
    assert containerfile.below(Path("/x"), "PATH=/opt/a:/opt/b") == "PATH=/x/opt/a:/x/opt/b"
