"""Describe one setting: its environment variable, its flags, and its default as text.

`settings.py` puts a `Setting` beside each field. `cli/options.py` makes flags and help from it, and
`make reference-pages` makes the table in docs/settings.md. Nothing here reads a value.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from pydantic import BaseModel

PREFIX = "SMA_"

_PLATFORM_NAMES = {
    "database_url": "DATABASE_URL",
    "ca_password": "CA_PASSWORD",
    "port": "PORT",
}


@dataclass(frozen=True, slots=True)
class Setting:
    """The commands that have a flag for a setting, as they are typed after `sma`.

    `default` describes the default if the value alone does not. `flag` replaces the usual name of
    the flag. `aliases` maps a command to a further flag, which that command shows first.
    """

    commands: tuple[str, ...] = ()
    default: str | None = None
    flag: str | None = None
    aliases: Mapping[str, str] = field(default_factory=dict)


def find_setting(model: type[BaseModel], name: str) -> Setting:
    """Return the metadata of a field of Settings or NewSecret."""
    [found] = [each for each in model.model_fields[name].metadata if isinstance(each, Setting)]
    return found


def describe_default(model: type[BaseModel], name: str) -> str:
    """Return the default of a field as text, or an empty string if it has none."""
    told, value = find_setting(model, name).default, model.model_fields[name].default
    if told is not None:
        return told
    if value is None or value == ():
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, StrEnum):
        return value.value
    return f"{value:g}" if isinstance(value, float) else str(value)


def environment_variable(field: str) -> str:
    """Return the environment variable of a setting, such as SMA_DATA_DIR for `data_dir`."""
    return _PLATFORM_NAMES.get(field, PREFIX + field.upper())
