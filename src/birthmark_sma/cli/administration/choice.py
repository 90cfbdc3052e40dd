"""Decide which authority a command works on: that of a server, or that of a database.

`cli/options.py` calls it for every command that has settings. An operator must never change another
authority than the one that he means, so two that are named in the same way are an error. PURE.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from typer import BadParameter

from birthmark_sma.errors import ConfigurationError

if TYPE_CHECKING:
    from birthmark_sma.config import Settings

SERVER_FLAGS = ("server", "server_key_file", "server_ca_file")
"""The settings that have a flag before the command."""
_DATABASE = ("database_url", "data_dir")


def choose_authority(
    settings: "Settings", flags: Mapping[str, Any], command: str, *, remote: bool
) -> "Settings":
    """Return the settings, without `server` if the command works on the database.

    `flags` has the values of all flags, None for those that were not given. A flag overrides the
    environment and the settings file. Raises BadParameter if flags contradict each other, and
    ConfigurationError if the other sources do, or if they name a server for a command that is not
    `remote`.
    """
    given = {name for name, value in flags.items() if value is not None}
    if "server" in given and given.intersection(_DATABASE):
        raise BadParameter("Give --server, or --database-url and --data-dir, but not both.")
    if given.intersection(_DATABASE):
        if given.intersection(SERVER_FLAGS):
            raise BadParameter("--server-key-file and --server-ca-file are for a server alone.")
        return settings.model_copy(update={"server": None})
    if settings.server is None:
        if given.intersection(SERVER_FLAGS):
            raise BadParameter("Name the server as well, with --server or SMA_SERVER.")
        return settings
    if "server" not in given:
        _check_environment(settings, command, remote=remote)
    return settings


def _check_environment(settings: "Settings", command: str, *, remote: bool) -> None:
    if not remote:
        raise ConfigurationError(
            f"SMA_SERVER is set, and sma {command} needs a database. To run it on a database of"
            " this machine, unset SMA_SERVER, or name the database with --data-dir or"
            " --database-url"
        )
    if settings.model_fields_set.intersection(_DATABASE):
        raise ConfigurationError(
            "SMA_SERVER is set, and so is DATABASE_URL or SMA_DATA_DIR: it is not clear which"
            " authority is meant. Name it with --server, --data-dir or --database-url, or unset"
            " one of them"
        )
