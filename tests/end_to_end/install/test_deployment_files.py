"""The files of deployments name only what exists: variables, commands, paths, ports, services."""

import ipaddress
import re
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import typer
from jsonschema_rs import Draft202012Validator

from birthmark_sma.cli.main import app
from birthmark_sma.config import Settings, environment_variable
from tests.support.deployment.containerfile import read_stages
from tests.support.deployment.platforms import (
    PLATFORMS,
    ROOT,
    container_of,
    documents,
    read,
    read_environment_file,
    read_unit,
)

COMPOSE = read("compose.yaml")
KUBERNETES = ROOT / "deploy" / "kubernetes"
SETTINGS = {environment_variable(name) for name in Settings.model_fields}
OF_PLATFORMS = re.compile(r"DYNO|FLY_.*|RAILWAY_.*|KUBERNETES_.*|PYTHONUNBUFFERED|WEB_CONCURRENCY")
RESOURCES = [each for file in sorted(KUBERNETES.glob("*.yaml")) for each in documents(str(file))]
FIELDS = read("tests/support/deployment/fields.json")
KUSTOMIZATION = {
    *("apiVersion", "kind", "namespace", "resources", "images"),
    *("secretGenerator", "configMapGenerator"),
}
IMAGE = read_stages((ROOT / "Containerfile").read_text(encoding="utf-8"))[-1]
DEPLOYMENT_FILES = [
    ROOT / name for name in ("Containerfile", "Procfile", "app.json", "compose.yaml", "fly.toml")
] + [file for file in (ROOT / "deploy").rglob("*") if file.is_file()]


def of_kind(kind: str) -> Any:
    """Return the one resource of Kubernetes of a kind."""
    [found] = [each for each in RESOURCES if each["kind"] == kind]
    return found


def assert_exists(arguments: list[str]) -> None:
    """Assert that the command line has a command, and its flags."""
    found: Any = typer.main.get_command(app)
    for word in arguments:
        if not hasattr(found, "commands"):
            break
        assert word in found.commands, word
        found = found.commands[word]
    flags = {option for parameter in found.params for option in parameter.opts}
    assert {each for each in arguments if each.startswith("--")} <= flags


def test_the_page_names_what_exists() -> None:
    """Its `sma` commands, and the files of the repository."""
    page = (ROOT / "docs" / "set-up" / "platforms.md").read_text(encoding="utf-8")
    commands = re.findall(r"(?<![\w/-])sma ((?!birth)[a-z][^\n`'#]*)", page)
    for command in commands:
        assert_exists(command.split("  ")[0].split())
    assert len(commands) > 10
    files = set(re.findall(r"(?<![\w/.~])(?:deploy|bin|requirements)/[\w./-]+[\w/]", page))
    for file in files | {"Procfile", "app.json", "railway.json", "fly.toml", "compose.yaml"}:
        written = (ROOT / f"{file}.example").exists()  # the reader fills in a copy
        assert written or (ROOT / file).exists(), file


@pytest.mark.parametrize("name", PLATFORMS)
def test_every_variable_is_a_setting(name: str) -> None:
    """An unknown SMA_ variable would stop the server, and another one would change nothing."""
    for variable in PLATFORMS[name]().environ:
        assert variable in SETTINGS or OF_PLATFORMS.fullmatch(variable), variable


@pytest.mark.parametrize("name", PLATFORMS)
def test_every_command_and_flag_exists(name: str) -> None:
    """They are parsed by the command line itself."""
    platform = PLATFORMS[name]()
    for command in (platform.release, platform.web):
        assert Path(command[0]).name == "sma"
        assert_exists(command[1:])


@pytest.mark.parametrize("name", PLATFORMS)
def test_the_proxies_that_are_trusted_are_private_ones(name: str) -> None:
    """Nobody on the Internet can claim to be a proxy (threat 23)."""
    platform = PLATFORMS[name]()
    named = platform.environ.get("SMA_TRUSTED_PROXIES")
    if named is None:
        named = platform.web[platform.web.index("--trusted-proxies") + 1]
    for each in named.split(","):
        network = ipaddress.ip_network(each)
        assert network.is_private or network == ipaddress.ip_network("100.64.0.0/10")


@pytest.mark.parametrize("file", DEPLOYMENT_FILES, ids=lambda file: file.name)
def test_no_file_holds_a_secret_or_names_a_registry(file: Path) -> None:
    """A secret has no default, and an image is named by its short name."""
    text = file.read_text(encoding="utf-8")
    assert not re.search(r"(PASSWORD|METRICS_KEY)[=:][ ]?[A-Za-z0-9]{4}", text)
    assert not re.search(r"://[^/\s]*:[^@/\s$]*@", text)
    for image in re.findall(r"^\s*(?:image:|FROM)\s+(\S+)", text, re.MULTILINE):
        assert "." not in image.partition("/")[0].partition(":")[0], image


@pytest.mark.parametrize("resource", RESOURCES, ids=lambda resource: resource["kind"])
def test_kubernetes_knows_every_field(resource: Any) -> None:
    """kubectl refuses an unknown field. Values have the type that their field has."""
    if resource["kind"] == "Kustomization":  # read by a program of its own
        assert resource.keys() <= KUSTOMIZATION
    else:
        assert_schema(FIELDS["kubernetes"][resource["kind"]], resource)


def test_compose_knows_every_field() -> None:
    assert_schema(FIELDS["compose"], COMPOSE)


def assert_schema(schema: Any, document: Any) -> None:
    """Assert that a document follows a schema, and that a misspelt field would not."""
    validator = Draft202012Validator(schema)
    errors = [
        f"{error.instance_path}: {error.message}" for error in validator.iter_errors(document)
    ]
    assert errors == []
    assert not validator.is_valid(document | {"misspelt": 1})


def test_every_path_that_compose_mounts_exists() -> None:
    named = set(COMPOSE["volumes"])
    for service in COMPOSE["services"].values():
        for volume in service.get("volumes", []):
            source = volume.partition(":")[0]
            made = source in named or source == "./root-key"  # the operator creates it
            assert made or (ROOT / source).exists(), source
        build = service.get("build")
        assert build is None or (ROOT / build["dockerfile"]).exists()


def test_every_service_that_compose_names_exists() -> None:
    services = COMPOSE["services"]
    for service in services.values():
        assert set(service.get("depends_on", ())) <= set(services)
        assert set(service["networks"]) <= set(COMPOSE["networks"])
        assert set(service.get("secrets", ())) <= set(COMPOSE["secrets"])
    server = services["server"]["environment"]
    for url in (server["DATABASE_URL"], server["SMA_RATE_STORE"]):
        host = re.split(r"[@/]", url.partition("://")[2])[-2].partition(":")[0]
        assert host in services
        assert set(services[host]["networks"]) & set(services["server"]["networks"])
    [subnet] = COMPOSE["networks"]["edge"]["ipam"]["config"]
    assert server["SMA_TRUSTED_PROXIES"] == subnet["subnet"]
    assert "edge" in services["caddy"]["networks"]
    # The database and Redis cannot be reached from outside, and cannot reach it.
    assert COMPOSE["networks"]["inside"]["internal"]
    assert [each for each in services if "ports" in services[each]] == ["caddy", "grafana"]


def test_every_variable_that_compose_asks_for_is_in_the_example() -> None:
    asked = set(re.findall(r"\$\{([A-Z_]+)", (ROOT / "compose.yaml").read_text("utf-8")))
    asked |= {secret["environment"] for secret in COMPOSE["secrets"].values()}
    assert asked == set(read_environment_file("deploy/container/env.example"))


def test_the_server_of_compose_can_write_nowhere() -> None:
    for name in ("server", "migrate", "init"):
        service = COMPOSE["services"][name]
        assert service["read_only"]
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]


def test_caddy_and_prometheus_ask_the_server_at_its_port() -> None:
    port = COMPOSE["services"]["server"]["environment"]["PORT"]
    caddyfile = (ROOT / "deploy" / "caddy" / "Caddyfile").read_text(encoding="utf-8")
    assert f"reverse_proxy server:{port} " in caddyfile
    assert "{$DOMAIN:localhost}" in caddyfile
    assert "DOMAIN" in COMPOSE["services"]["caddy"]["environment"]
    prometheus = read("deploy/prometheus/prometheus.yml")
    [job] = prometheus["scrape_configs"]
    assert job["static_configs"] == [{"targets": [f"server:{port}"]}]
    secret = Path(job["authorization"]["credentials_file"])
    assert secret.name in COMPOSE["services"]["prometheus"]["secrets"]
    for rules in prometheus["rule_files"]:
        file = ROOT / "deploy" / "prometheus" / rules
        assert f'job="{job["job_name"]}"' in file.read_text(encoding="utf-8")


def test_security_txt_has_the_required_fields() -> None:
    """RFC 9116, sections 2.5.3 and 2.5.5; and Caddy has the file where it looks for it."""
    lines = (ROOT / "deploy" / "caddy" / "security.txt").read_text(encoding="utf-8").splitlines()
    fields = dict(line.split(": ", 1) for line in lines if not line.startswith("#"))
    assert re.fullmatch(r"(mailto|https|tel):\S+", fields["Contact"])
    assert datetime.fromisoformat(fields["Expires"]).tzinfo is not None
    assert urlsplit(fields["Canonical"]).path == "/.well-known/security.txt"
    caddyfile = (ROOT / "deploy" / "caddy" / "Caddyfile").read_text(encoding="utf-8")
    [folder] = re.findall(r"root \* (\S+)", caddyfile)
    mounted = [each.split(":")[1] for each in COMPOSE["services"]["caddy"]["volumes"]]
    assert f"{folder}/security.txt" in mounted


def test_grafana_finds_prometheus_and_the_dashboards() -> None:
    [source] = read("deploy/grafana/provisioning/datasources/prometheus.yml")["datasources"]
    assert source["url"] == "http://prometheus:9090"
    [provider] = read("deploy/grafana/provisioning/dashboards/birthmark-sma.yml")["providers"]
    mounted = [volume.split(":")[1] for volume in COMPOSE["services"]["grafana"]["volumes"]]
    folder = Path(provider["options"]["path"])
    assert [Path(each).name for each in mounted if Path(each).parent == folder] == [
        "birthmark-sma.json"
    ]


def test_flys_port_and_checks_are_those_of_the_server() -> None:
    file = read("fly.toml")
    service = file["http_service"]
    assert str(service["internal_port"]) == file["env"]["PORT"]
    assert service["force_https"]
    assert service["processes"] == list(file["processes"])
    assert (ROOT / file["build"]["dockerfile"]).exists()
    [check] = service["checks"]
    assert check["path"] == read("railway.json")["deploy"]["healthcheckPath"] == "/health/ready"


def test_platforms_wait_for_the_accepted_requests() -> None:
    """The server takes 10 seconds at most; each platform gives it more before it kills."""
    unit = read_unit("deploy/systemd/birthmark-sma.service")
    pod = of_kind("Deployment")["spec"]["template"]["spec"]
    seconds = [
        int(read("fly.toml")["kill_timeout"].removesuffix("s")),
        int(COMPOSE["services"]["server"]["stop_grace_period"].removesuffix("s")),
        read("railway.json")["deploy"]["drainingSeconds"],
        int(unit["TimeoutStopSec"][0]),
        pod["terminationGracePeriodSeconds"] - 5,  # of preStop
    ]
    assert min(seconds) > 10


def test_kubernetes_probes_are_patient() -> None:
    """A database that is away ends no pod, and a slow start is no failed one."""
    container = container_of(of_kind("Deployment"))
    start, ready, live = (
        container[f"{name}Probe"] for name in ("startup", "readiness", "liveness")
    )
    [port] = container["ports"]
    for probe in (start, ready, live):
        assert probe["httpGet"]["port"] == port["name"]
        assert probe["timeoutSeconds"] > 4, "the server itself gives up after 4 seconds"
    assert ready["httpGet"]["path"] == "/health/ready"
    assert live["httpGet"]["path"] == start["httpGet"]["path"] == "/health/live"
    wait = Settings.model_fields["database_wait"].default
    assert start["periodSeconds"] * start["failureThreshold"] > wait + 30
    environ = PLATFORMS["kubernetes"]().environ
    assert environ["PORT"] == str(port["containerPort"]) == IMAGE.port


def test_kubernetes_resources_belong_together() -> None:
    deployment, service = of_kind("Deployment"), of_kind("Service")
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    budget = of_kind("PodDisruptionBudget")["spec"]
    for selector in (
        deployment["spec"]["selector"]["matchLabels"],
        service["spec"]["selector"],
        budget["selector"]["matchLabels"],
    ):
        assert selector.items() <= labels.items()
    assert 0 < budget["minAvailable"] < deployment["spec"]["replicas"]
    [rule] = of_kind("Ingress")["spec"]["rules"]
    [path] = rule["http"]["paths"]
    assert path["backend"]["service"]["name"] == service["metadata"]["name"]
    assert path["backend"]["service"]["port"]["name"] == service["spec"]["ports"][0]["name"]
    kustomization = of_kind("Kustomization")
    assert set(kustomization["resources"]) == {
        file.name for file in KUBERNETES.glob("*.yaml") if file.name != "kustomization.yaml"
    }
    [secret], [settings] = kustomization["secretGenerator"], kustomization["configMapGenerator"]
    assert f"{secret['envs'][0]}.example" in {file.name for file in KUBERNETES.iterdir()}
    literals = dict(each.split("=", 1) for each in settings["literals"])
    assert literals["SMA_PUBLIC_URL"] == f"https://{rule['host']}"
    for kind in ("Deployment", "Job"):
        names = [
            next(iter(source.values()))["name"] for source in container_of(of_kind(kind))["envFrom"]
        ]
        assert names == [settings["name"], secret["name"]]
    assert {image["name"] for image in kustomization["images"]} == {
        container_of(of_kind(kind))["image"] for kind in ("Deployment", "Job")
    }


@pytest.mark.parametrize("kind", ["Deployment", "Job"])
def test_a_pod_has_no_rights(kind: str) -> None:
    """As the standard `restricted` of the namespace asks, and with the image's user."""
    pod = of_kind(kind)["spec"]["template"]["spec"]
    assert not pod["automountServiceAccountToken"]
    assert not pod["enableServiceLinks"], "a service named sma would set SMA_PORT"
    user = f"{pod['securityContext']['runAsUser']}:{pod['securityContext']['runAsGroup']}"
    assert user == IMAGE.user
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container_of(of_kind(kind))["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert set(of_kind("Namespace")["metadata"]["labels"].values()) == {"restricted"}


def test_the_unit_of_systemd_is_hardened() -> None:
    unit = read_unit("deploy/systemd/birthmark-sma.service")
    assert unit["DynamicUser"] == ["yes"]
    assert unit["ProtectSystem"] == ["strict"]
    assert unit["CapabilityBoundingSet"] == [""]
    assert unit["NoNewPrivileges"] == unit["PrivateDevices"] == ["yes"]
    [state] = unit["StateDirectory"]
    environ = read_environment_file("deploy/systemd/environment.example")
    assert environ["SMA_DATA_DIR"] == unit["WorkingDirectory"][0] == f"/var/lib/{state}"
    wait = Settings.model_fields["database_wait"].default
    assert int(unit["TimeoutStartSec"][0]) > 2 * wait


def test_heroku_installs_the_lock_and_the_package() -> None:
    assert (ROOT / "requirements.txt").read_text("utf-8").splitlines()[-1].split() == [
        "-r",
        "requirements/run.lock",
    ]
    script = ROOT / "bin" / "post_compile"
    assert script.stat().st_mode & 0o111
    for name in re.findall(r"-r (\S+)", script.read_text("utf-8")):
        assert (ROOT / name).exists()
    assert set(read("app.json")["env"]) <= SETTINGS
