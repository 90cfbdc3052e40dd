"""Read the files of the hosting platforms: their commands, and the variables that they set.

Each function returns what the platform itself would run. The tests of tests/end_to_end/install/
play and check them.
"""

import json
import shlex
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[3]


@dataclass(frozen=True)
class Platform:
    """The commands of a platform, as lists of arguments, and the variables that it sets.

    `environ` lacks DATABASE_URL and CA_PASSWORD, which the operator sets.
    """

    release: list[str]
    web: list[str]
    environ: Mapping[str, str]


def read(name: str) -> Any:
    """Return the content of a YAML, JSON or TOML file of the repository."""
    text = (ROOT / name).read_text(encoding="utf-8")
    if name.endswith(".toml"):
        return tomllib.loads(text)
    return json.loads(text) if name.endswith(".json") else yaml.safe_load(text)


def documents(name: str) -> list[Any]:
    """Return the documents of a YAML file of the repository."""
    return list(yaml.safe_load_all((ROOT / name).read_text(encoding="utf-8")))


def read_environment_file(name: str) -> dict[str, str]:
    """Return the variables of a file with a `NAME=value` on each line."""
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    pairs = (line.partition("=") for line in lines if line and not line.startswith("#"))
    return {variable: value for variable, _, value in pairs}


def _heroku() -> Platform:
    lines = (ROOT / "Procfile").read_text(encoding="utf-8").splitlines()
    commands = {
        name: shlex.split(command) for name, _, command in (x.partition(":") for x in lines)
    }
    environ = {"PORT": "20000", "DYNO": "web.1", "PYTHONUNBUFFERED": "true", "WEB_CONCURRENCY": "2"}
    return Platform(commands["release"], commands["web"], environ)


def _railway() -> Platform:
    deploy = read("railway.json")["deploy"]
    [release] = deploy["preDeployCommand"]
    environ = {"PORT": "8080", "RAILWAY_ENVIRONMENT_NAME": "production", "RAILWAY_PROJECT_ID": "x"}
    return Platform(shlex.split(release), shlex.split(deploy["startCommand"]), environ)


def _fly() -> Platform:
    file = read("fly.toml")
    environ = file["env"] | {"FLY_APP_NAME": file["app"], "FLY_REGION": file["primary_region"]}
    return Platform(
        shlex.split(file["deploy"]["release_command"]),
        shlex.split(file["processes"]["web"]),
        environ,
    )


def _compose() -> Platform:
    services = read("compose.yaml")["services"]
    server = services["server"]
    return Platform(services["migrate"]["command"], server["command"], server["environment"])


def _kubernetes() -> Platform:
    folder = "deploy/kubernetes"
    [job] = documents(f"{folder}/migrate.yaml")
    deployment = documents(f"{folder}/server.yaml")[0]
    [map_] = read(f"{folder}/kustomization.yaml")["configMapGenerator"]
    environ = dict(literal.split("=", 1) for literal in map_["literals"])
    environ |= read_environment_file(f"{folder}/secrets.env.example")
    return Platform(
        container_of(job)["command"],
        container_of(deployment)["command"],
        environ | {"KUBERNETES_SERVICE_HOST": "10.96.0.1"},
    )


def _systemd() -> Platform:
    unit = read_unit("deploy/systemd/birthmark-sma.service")
    [release], [web] = unit["ExecStartPre"], unit["ExecStart"]
    environ = read_environment_file("deploy/systemd/environment.example")
    return Platform(shlex.split(release), shlex.split(web), environ)


def container_of(resource: Any) -> Any:
    """Return the one container of a Deployment or Job of Kubernetes."""
    [container] = resource["spec"]["template"]["spec"]["containers"]
    return container


def read_unit(name: str) -> dict[str, list[str]]:
    """Return the values of each directive of a systemd unit, whatever its section."""
    found: dict[str, list[str]] = {}
    for line in (ROOT / name).read_text(encoding="utf-8").splitlines():
        directive, separator, value = line.partition("=")
        if separator and not line.startswith("#"):
            found.setdefault(directive, []).append(value)
    return found


PLATFORMS: Mapping[str, Callable[[], Platform]] = {
    "heroku": _heroku,
    "railway": _railway,
    "fly": _fly,
    "compose": _compose,
    "kubernetes": _kubernetes,
    "systemd": _systemd,
}
