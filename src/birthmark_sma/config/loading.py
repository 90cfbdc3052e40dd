"""Merge flags, environment variables and a file into Settings. Earlier ones override later ones.

The command line calls `load_settings`; all other modules get the frozen result. An unknown `SMA_`
variable is an error: if a misspelt setting were ignored, a less safe default could apply unnoticed.
Error messages name the setting, and must never show its value.
"""

import difflib
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from birthmark_sma.config.setting import PREFIX, environment_variable
from birthmark_sma.config.settings import PROTOTYPE, SANDBOX, SECRET_FIELDS, NewSecret, Settings
from birthmark_sma.errors import ConfigurationError

CONFIG_FILE_VARIABLE = "SMA_CONFIG_FILE"
DEFAULT_CONFIG_FILE = Path("sma.toml")


def load_settings(
    flags: Mapping[str, Any],
    environ: Mapping[str, str],
    *,
    prototype: bool = False,
    sandbox: bool = False,
) -> Settings:
    """Merge flags, environment and file into Settings.

    A flag that is None counts as not given, and an empty variable as unset. Raises
    ConfigurationError, with the name of the setting and never its value, if a setting is unknown or
    invalid.
    """
    # Later mappings override earlier ones.
    merged = (
        (dict(SANDBOX) if sandbox else {})
        | (dict(PROTOTYPE) if prototype else {})
        | _from_file(environ)
        | _from_environment(environ)
        | {field: value for field, value in flags.items() if value is not None}
    )
    try:
        return Settings(**merged)
    except ValidationError as error:
        raise ConfigurationError(_explain(error)) from None


def load_new_secret(flags: Mapping[str, Any], environ: Mapping[str, str]) -> NewSecret:
    """Merge flags and environment into NewSecret; flags override. Raises ConfigurationError."""
    known = {environment_variable(field): field for field in NewSecret.model_fields}
    given = {known[name]: value for name, value in environ.items() if name in known and value}
    try:
        return NewSecret(**given | {name: value for name, value in flags.items() if value})
    except ValidationError as error:
        raise ConfigurationError(_explain(error)) from None


def _from_environment(environ: Mapping[str, str]) -> dict[str, str]:
    known = {environment_variable(field): field for field in Settings.model_fields}
    others = [CONFIG_FILE_VARIABLE, *map(environment_variable, NewSecret.model_fields)]
    for variable in environ:
        if variable.startswith(PREFIX) and variable not in {*known, *others}:
            nearest = _nearest(variable, [*known, *others])
            raise ConfigurationError(f"{variable} is not a setting.{nearest}")
    return {known[name]: value for name, value in environ.items() if name in known and value}


def _from_file(environ: Mapping[str, str]) -> dict[str, Any]:
    named = environ.get(CONFIG_FILE_VARIABLE)
    path = Path(named) if named else DEFAULT_CONFIG_FILE
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if named:
            raise ConfigurationError(
                f"The settings file {path} does not exist. Correct {CONFIG_FILE_VARIABLE}."
            ) from None
        return {}
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigurationError(f"The settings file {path} cannot be read: {error}.") from None
    for key in content:
        if key not in Settings.model_fields:
            nearest = _nearest(key, list(Settings.model_fields))
            raise ConfigurationError(f"{key} in {path} is not a setting.{nearest}")
    if SECRET_FIELDS & content.keys() and path.stat().st_mode & 0o077:
        raise ConfigurationError(
            f"{path} holds a secret, and other users can read it. Type: chmod 600 {path}"
        )
    return content


def _nearest(name: str, known: list[str]) -> str:
    # Compared without the common prefix, which would make all names look similar.
    by_stem = {each.removeprefix(PREFIX).lower(): each for each in known}
    matches = difflib.get_close_matches(name.removeprefix(PREFIX).lower(), by_stem, n=1)
    return f" Did you mean {by_stem[matches[0]]}?" if matches else ""


def _explain(error: ValidationError) -> str:
    first = error.errors(include_input=False, include_url=False)[0]
    field = str(first["loc"][0]) if first["loc"] else "settings"
    what = first["msg"].removeprefix("Value error, ")
    return f"{environment_variable(field)} cannot be used: {what[:1].lower()}{what[1:]}."
