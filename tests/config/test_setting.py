"""The table of settings: what is made from it agrees with it and with the rest of the code."""

import pytest
import typer
from pydantic import BaseModel

from birthmark_sma.authority.rate_limits.limiter import DEFAULTS
from birthmark_sma.cli.main import app
from birthmark_sma.config import NewSecret, Settings, describe_default, find_setting
from checks.settings_table import PAGE, make_table, replace_table

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


def test_the_table_in_the_docs_is_up_to_date() -> None:
    """If not, run `make settings-table`."""
    page = PAGE.read_text(encoding="utf-8")
    assert make_table() in page
    assert replace_table(page) == page


def test_an_old_table_is_replaced() -> None:
    page = PAGE.read_text(encoding="utf-8")
    old = page.replace("| `PORT` | `8000` |", "| `PORT` | `80` |")
    assert old != page
    assert replace_table(old) == page
