"""The table of settings: what is made from it agrees with it and with the rest of the code."""

import pytest
import typer
from pydantic import BaseModel

from birthmark_sma.authority.rate_limits.limits import DEFAULTS
from birthmark_sma.cli.main import app
from birthmark_sma.config import NewSecret, Settings, describe_default, find_setting

FIELDS = [(model, name) for model in (Settings, NewSecret) for name in model.model_fields]


@pytest.mark.parametrize(("model", "name"), FIELDS, ids=[name for _, name in FIELDS])
def test_a_setting_is_described_and_its_commands_exist(model: type[BaseModel], name: str) -> None:
    """A flag of a command that does not exist would silently be missing."""
    assert (model.model_fields[name].description or "").endswith(".")
    for path in find_setting(model, name).commands:
        command = typer.main.get_command(app)
        for word in path.split():
            command = command.commands[word]  # type: ignore[attr-defined]
        assert f"--{name.replace('_', '-')}" in {each for p in command.params for each in p.opts}


@pytest.mark.parametrize("kind", DEFAULTS)
def test_the_described_rate_limits_are_the_real_ones(kind: str) -> None:
    assert describe_default(Settings, f"rate_{kind}").startswith(f"{DEFAULTS[kind]};")  # type: ignore[index]
