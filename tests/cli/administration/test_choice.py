"""Which authority a command works on, for every way to name one."""

from pathlib import Path
from typing import Any

import pytest
from typer import BadParameter

from birthmark_sma.cli.administration.choice import choose_authority
from birthmark_sma.config import load_settings
from birthmark_sma.errors import ConfigurationError

SERVER, OTHER = "https://sma.example.org", "https://other.example.org"


@pytest.fixture(autouse=True)
def empty_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep a settings file of the developer's out of these tests."""
    monkeypatch.chdir(tmp_path)


def choose(flags: dict[str, Any], environ: dict[str, str], *, remote: bool = True) -> str | None:
    """Return the server on which a command works, or None for the database."""
    settings = load_settings(flags, environ)
    return choose_authority(settings, flags, "devices list", remote=remote).server


def test_without_a_server_it_is_the_database() -> None:
    assert choose({}, {}) is None
    assert choose({}, {"DATABASE_URL": "postgresql://db/sma"}, remote=False) is None


def test_a_flag_overrides_the_environment() -> None:
    environ = {"SMA_SERVER": SERVER, "DATABASE_URL": "postgresql://db/sma"}
    assert choose({"server": OTHER}, environ) == OTHER
    assert choose({"data_dir": Path("here")}, environ) is None
    assert choose({"data_dir": Path("here")}, environ, remote=False) is None
    assert choose({"database_url": "postgresql://other/sma"}, {"SMA_SERVER": SERVER}) is None


def test_the_environment_alone_names_the_server() -> None:
    assert choose({}, {"SMA_SERVER": SERVER}) == SERVER


@pytest.mark.parametrize("name", ["DATABASE_URL", "SMA_DATA_DIR"])
def test_server_and_database_in_the_environment_are_refused(name: str) -> None:
    with pytest.raises(ConfigurationError, match="not clear which authority"):
        choose({}, {"SMA_SERVER": SERVER, name: "sqlite:///sma.db"})


def test_a_settings_file_counts_as_the_environment() -> None:
    Path("sma.toml").write_text('data_dir = "data"\n')
    with pytest.raises(ConfigurationError, match="not clear which authority"):
        choose({}, {"SMA_SERVER": SERVER})


def test_a_command_that_needs_the_database_refuses_the_variable() -> None:
    """`sma serve` or `sma history prune` must not work on another authority than the shell's."""
    with pytest.raises(ConfigurationError, match="needs a database"):
        choose({}, {"SMA_SERVER": SERVER}, remote=False)
    with pytest.raises(ConfigurationError, match="needs a database"):
        choose({}, {"SMA_SERVER": SERVER, "DATABASE_URL": "postgresql://db/sma"}, remote=False)


@pytest.mark.parametrize(
    "flags",
    [
        {"server": SERVER, "data_dir": Path("here")},
        {"server": SERVER, "database_url": "postgresql://db/sma"},
        {"server_key_file": Path("key"), "data_dir": Path("here")},
        {"server_key_file": Path("key")},
        {"server_ca_file": Path("ca")},
    ],
    ids=str,
)
def test_flags_that_contradict_each_other_are_refused(flags: dict[str, Any]) -> None:
    with pytest.raises(BadParameter):
        choose(flags, {})
