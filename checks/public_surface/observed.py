"""Collect routes, OpenAPI document, metrics, log fields and command outputs from a real authority.

`observe` starts a process (`authority_process`), so that the authority's threads and its logging
do not affect the caller. That process creates a small SQLite authority in a temporary directory and
calls it without a socket. It ends within seconds.
"""

import functools
import json
import subprocess
import sys
import tempfile
from typing import Any

from checks.clean_environment import make_environment
from checks.public_surface.json_schema import find_prose, without_prose
from checks.public_surface.text import find_shape, leave_out_empty

_SECONDS = 120


@functools.cache
def observe() -> dict[str, Any]:
    """Return the findings of the authority's process, and the lines of its log.

    The result is cached. Raises RuntimeError if the process fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, "-m", "checks.public_surface.authority_process"],
            cwd=folder,
            env=make_environment(),
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=False,
        )
    if done.returncode:
        raise RuntimeError(f"The observed authority failed:\n{done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    log = [line for line in done.stderr.splitlines() if line.startswith("{")]
    return found | {"log": [json.loads(line) for line in log]}


def collect_openapi() -> dict[str, Any]:
    """Return the OpenAPI document without its prose and the program's version."""
    document = without_prose(observe()["openapi"])
    document["info"].pop("version")
    return {"document": document}


def collect_openapi_prose() -> dict[str, Any]:
    """Return the titles, descriptions, summaries and examples of the OpenAPI document."""
    return dict(find_prose(observe()["openapi"]))


def collect_routes() -> dict[str, Any]:
    """Return the accepted credentials and the rate limits of each route."""
    routes: dict[str, Any] = observe()["routes"]
    return routes


def collect_response_headers() -> dict[str, Any]:
    """Return the header fields of sample responses, one of each kind."""
    headers: dict[str, Any] = observe()["headers"]
    return headers


def collect_metrics() -> dict[str, Any]:
    """Return kind, sample names, labels, buckets and fixed label values of each metric family."""
    families: dict[str, Any] = observe()["metrics"]
    return {
        name: leave_out_empty({k: v for k, v in family.items() if k != "help"})
        for name, family in families.items()
    }


def collect_metric_help() -> dict[str, str]:
    """Return the help text of each metric family."""
    return {name: family["help"] for name, family in observe()["metrics"].items()}


def collect_command_outputs() -> dict[str, Any]:
    """Return the shapes of the commands' --json outputs and of the files that they write."""
    outputs: dict[str, Any] = observe()["outputs"]
    return outputs


def collect_log_fields() -> dict[str, Any]:
    """Return the fields of the JSON log's lines, by kind of line."""
    requests = [line for line in observe()["log"] if line["event"] == "request"]
    others = [line for line in observe()["log"] if line["event"] != "request"]
    fields: dict[str, set[str]] = {}
    for line in others:
        for name, kind in line.items():
            fields.setdefault(name, set()).add(type(kind).__name__)
    return {
        "a request": {name: find_shape(value) for name, value in requests[0].items()},
        "a request, in order": list(requests[0]),
        "more for camera tokens": {
            name: find_shape(value)
            for line in requests
            for name, value in line.items()
            if name not in requests[0]
        },
        "another record": {name: " | ".join(sorted(kinds)) for name, kinds in fields.items()},
        "events that are names": ["request"] if requests else [],
        "levels": sorted({line["level"] for line in observe()["log"]}),
    }
