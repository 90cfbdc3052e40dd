"""Collect the commands of `sma`: arguments, options, types, defaults; and the exit codes."""

import re
from collections.abc import Iterator
from typing import Any

import typer

from checks.public_surface import places
from checks.public_surface.text import format_type, format_value, leave_out_empty

_VARIABLE = re.compile(r"\[(SMA_[A-Z_]+|DATABASE_URL|CA_PASSWORD|PORT)\b")


def collect_command_line() -> dict[str, Any]:
    """Return every command with its arguments and options, hidden ones included."""
    return {path: _describe_command(command) for path, command in list_commands()}


def collect_exit_codes() -> dict[str, int]:
    """Return the exit codes by name. `collect_errors` has the exit code of each error class."""
    return {
        name: value
        for name, value in vars(places.exit_codes).items()
        if name.isupper() and not name.startswith("_") and isinstance(value, int)
    }


def list_commands() -> list[tuple[str, Any]]:
    """Return each command with its path, such as `sma devices list`."""
    return sorted(_walk("sma", typer.main.get_command(places.command_line)))


def describe_type(parameter: Any) -> str:
    """Return the type of an argument or option as text."""
    return format_type(parameter.type_descriptor.annotation)


def _walk(path: str, command: Any) -> Iterator[tuple[str, Any]]:
    yield path, command
    for name, inner in getattr(command, "commands", {}).items():
        yield from _walk(f"{path} {name}", inner)


def _describe_command(command: Any) -> dict[str, Any]:
    arguments = [each for each in command.params if not each.opts[0].startswith("-")]
    options = [each for each in command.params if each.opts[0].startswith("-")]
    return leave_out_empty(
        {
            "arguments": [{"name": each.name} | _describe_parameter(each) for each in arguments],
            "options": {each.opts[0]: _describe_parameter(each) for each in options},
            "commands": sorted(getattr(command, "commands", {})),
            "hidden": command.hidden,
            "deprecated": bool(command.deprecated),
            "context_settings": {k: format_value(v) for k, v in command.context_settings.items()},
        }
    )


def _describe_parameter(parameter: Any) -> dict[str, Any]:
    default = parameter.default
    bounds = {name: getattr(parameter, name, None) for name in ("min", "max")}
    return leave_out_empty(
        {
            "type": describe_type(parameter),
            "also": parameter.opts[1:],
            "off": parameter.secondary_opts,
            "required": parameter.required,
            "multiple": getattr(parameter, "multiple", False),
            "values": parameter.nargs if parameter.nargs != 1 else None,
            "flag": getattr(parameter, "is_flag", False),
            "hidden": getattr(parameter, "hidden", False),
            "environment": _find_variable(parameter),
            "default": None if default is None else format_value(default),
        }
    ) | {name: bound for name, bound in bounds.items() if bound is not None}


def _find_variable(parameter: Any) -> str | None:
    """Return the environment variable of an option, or None.

    Most options are settings, and their help text names the variable.
    """
    if parameter.envvar:
        return str(parameter.envvar)
    found = _VARIABLE.search(getattr(parameter, "help", None) or "")
    return found.group(1) if found else None
