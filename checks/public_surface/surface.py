"""The kinds of the public surface: the collector of each, and the file that records it.

`__main__` calls `record`, and tests/test_public_surface.py calls `compare`.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from checks.public_surface import places
from checks.public_surface.command_line import (
    collect_command_line,
    collect_exit_codes,
    list_commands,
)
from checks.public_surface.comparison import describe_differences
from checks.public_surface.database import collect_schema
from checks.public_surface.formats import collect_formats
from checks.public_surface.json_schema import without_prose
from checks.public_surface.observed import (
    collect_command_outputs,
    collect_log_fields,
    collect_metric_help,
    collect_metrics,
    collect_openapi,
    collect_openapi_prose,
    collect_response_headers,
    collect_routes,
)
from checks.public_surface.problem_types import collect_details, collect_problems
from checks.public_surface.python_names import ROOT, collect_errors, collect_python_names
from checks.public_surface.settings import collect_settings
from checks.public_surface.text import leave_out_empty

FOLDER = ROOT / "tests" / "public_surface"
_SANDBOX_PROSE = ("about", "data", "how", "what", "for")


def collect_sandbox() -> dict[str, Any]:
    """Return the scenarios and marks of a sandbox, without prose."""
    sandbox = places.list_sandbox()
    listed = dict(sandbox["listed"])
    for name in _SANDBOX_PROSE:
        listed.pop(name, None)
    listed["marks"] = sorted(listed["marks"])
    listed["scenarios"] = {
        each["name"]: {name: value for name, value in each.items() if name not in _SANDBOX_PROSE}
        for each in listed["scenarios"]
    }
    return {**sandbox, "listed": without_prose(listed)}


def collect_prose() -> dict[str, Any]:
    """Return the texts for people. They may change on purpose when all the rest must not."""
    listed = places.list_sandbox()["listed"]
    return {
        "commands": {path: _collect_help(command) for path, command in list_commands()},
        "openapi": collect_openapi_prose(),
        "problem details": collect_details(),
        "metrics": collect_metric_help(),
        "sandbox": {name: listed[name] for name in _SANDBOX_PROSE if name in listed}
        | {each["name"]: [each["what"], each["for"]] for each in listed["scenarios"]},
    }


KINDS: Mapping[str, Callable[[], Any]] = {
    "python_names": collect_python_names,
    "errors": collect_errors,
    "command_line": collect_command_line,
    "command_outputs": collect_command_outputs,
    "exit_codes": collect_exit_codes,
    "settings": collect_settings,
    "openapi": collect_openapi,
    "problems": collect_problems,
    "metrics": collect_metrics,
    "log_fields": collect_log_fields,
    "schema": collect_schema,
    "formats": collect_formats,
    "routes": collect_routes,
    "response_headers": collect_response_headers,
    "sandbox": collect_sandbox,
    "prose": collect_prose,
}
"""The collector of each kind, by the name of its file in tests/public_surface/ without .json."""


def compare(kind: str) -> list[str]:
    """Return a line for each difference between the recorded surface and the running code."""
    recorded = json.loads(path_of(kind).read_text(encoding="utf-8"))
    return describe_differences(recorded, json.loads(to_text(KINDS[kind]())))


def record(kind: str) -> list[str]:
    """Write the present surface to its file. Return a line for each difference to before."""
    path = path_of(kind)
    differences = compare(kind) if path.exists() else ["added: the whole file"]
    path.parent.mkdir(exist_ok=True)
    path.write_text(to_text(KINDS[kind]()), encoding="utf-8")
    return differences


def path_of(kind: str) -> Path:
    """Return the file that records a kind."""
    return FOLDER / f"{kind}.json"


def to_text(surface: Any) -> str:
    """Return a surface as sorted JSON with a line for each entry, so that diffs are small."""
    return json.dumps(surface, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def _collect_help(command: Any) -> dict[str, Any]:
    parameters = {each.opts[0]: getattr(each, "help", None) for each in command.params}
    return leave_out_empty(
        {
            "help": command.help,
            "short_help": command.short_help,
            "epilog": command.epilog,
            "parameters": leave_out_empty(parameters),
        }
    )
