"""Register the commands of `sma`, with the flags that the table of settings in `config` gives them.

A command's function gets `settings`, loaded from flags, environment and file, if it asks for them,
and likewise `sandbox` and `new_secret`. Its other parameters are its own arguments and options; a
dataclass among them is a group, whose fields are options. The parameters are built when a command
runs or prints its help, so `sma --help` does not load the settings.
"""

import inspect
import os
from collections.abc import Callable, Iterator
from dataclasses import MISSING, asdict, fields, is_dataclass
from functools import cached_property
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, TypeVar, get_args
from urllib.parse import urlsplit

import typer
from typer import Option
from typer.core import TyperCommand, TyperGroup

from birthmark_sma.cli import exit_codes
from birthmark_sma.cli.administration.choice import SERVER_FLAGS, choose_authority
from birthmark_sma.cli.output import print_stderr
from birthmark_sma.errors import ConfigurationError
from birthmark_sma.protocol.key_table import PUBLISHED_SIZES

Json = Annotated[bool, Option("--json", help="Print JSON, for scripts.")]

_Function = TypeVar("_Function", bound=Callable[..., None])

Yes = Annotated[bool, Option("--yes", help="Delete without asking.")]

_NO_LIMIT = 10_000
"""Characters of a sentence: more than any sentence has."""

_LOADED = {"settings", "sandbox", "new_secret"}
_PROFILES = {
    "prototype": (
        {"serve", "init", "provision", "provision-batch"},
        "Use the prototype profile: 10 key tables of 100 keys, port 5001, data in ./sma-prototype.",
    ),
    "published": (
        {"init"},
        "Create 250 key tables of 1,000 keys, which the Birthmark project's published server uses.",
    ),
    "sandbox": (
        {"serve", "init"},
        "Use an authority for integration tests. It fails on demand and deletes its data after an"
        " hour; data in ./sma-sandbox. Never use it for real devices.",
    ),
}
"""The commands and the help of each flag that changes the defaults of several settings."""


def command(
    app: typer.Typer, path: str, *, remote: bool = False
) -> Callable[[_Function], _Function]:
    """Return a decorator that registers a function as a command, such as `devices list`.

    `remote` commands also work against a server, in place of a database.
    """

    def register(function: _Function) -> _Function:
        def listed() -> None:
            """Stand for the function: typer reads only the docstring."""

        listed.__doc__ = function.__doc__
        attributes = {"path": path, "function": staticmethod(function), "remote": remote}
        kind = type("SettingsCommand", (_SettingsCommand,), attributes)
        app.command(path.rpartition(" ")[2], cls=kind)(listed)
        return function

    return register


class CommandGroup(TyperGroup):
    """A group of commands. Its help shows the whole first sentence of each command."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the arguments. Without any, print the help to stderr and exit: wrong usage."""
        if not args:
            print_stderr(ctx.get_help())
            ctx.exit(exit_codes.USAGE)
        return super().parse_args(ctx, args)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Return the command that the arguments name. Raises BadParameter if it takes no server."""
        name, found, rest = super().resolve_command(ctx, args)
        is_command = found is not None and not isinstance(found, TyperGroup)
        flags = [each for each in SERVER_FLAGS if ctx.find_root().params.get(each) is not None]
        if is_command and flags and not getattr(found, "remote", False):
            flag = f"--{flags[0].replace('_', '-')}"
            raise typer.BadParameter(
                f"{ctx.command_path} {name} needs the database: run it where DATABASE_URL is set,"
                f" without {flag}.",
                param_hint=flag,
            )
        return name, found, rest

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the names and first sentences of the commands. A long sentence is wrapped."""
        commands = [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]
        with formatter.section("Commands"):
            formatter.write_dl(
                [(name, each.get_short_help_str(_NO_LIMIT)) for name, each in commands if each]
            )


class _SettingsCommand(TyperCommand):
    """A command whose parameters are built when they are needed first."""

    path: str
    function: Callable[..., None]
    remote: bool

    @cached_property
    def _built(self) -> Any:
        app = typer.Typer(add_completion=False)
        app.command()(_with_flags(self.function, self.path, remote=self.remote))
        return typer.main.get_command(app)

    @property
    def params(self) -> Any:
        """The arguments and options."""
        return self._built.params

    @params.setter
    def params(self, value: Any) -> None:
        """Ignore the parameters of the function that typer was given: it has none."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        return self._built.invoke(ctx)


def _with_flags(function: Callable[..., None], path: str, *, remote: bool) -> Callable[..., None]:
    """Return a function with the command's own parameters and its flags, for typer."""
    wanted = inspect.signature(function).parameters
    own = [each for name, each in wanted.items() if name not in _LOADED]
    groups: dict[str, Any] = {
        each.name: each.annotation for each in own if is_dataclass(each.annotation)
    }

    def call(*, context: Any, **given: Any) -> None:
        # The flags that stand before the command.
        given |= {name: context.find_root().params.get(name) for name in SERVER_FLAGS}
        values: dict[str, Any] = {
            name: group(**{each.name: given.pop(each.name) for each in fields(group)})
            for name, group in groups.items()
        }
        values |= {each.name: given.pop(each.name) for each in own if each.name not in groups}
        if _LOADED & wanted.keys():
            loaded = _load(given, path, remote=remote)
            values |= {name: each for name, each in loaded.items() if name in wanted}
        function(**values)

    parameters = [
        _parameter(
            each.name,
            each.type,
            inspect.Parameter.empty if each.default is MISSING else each.default,
        )
        for group in groups.values()
        for each in fields(group)
    ]
    parameters += [each.replace(kind=each.KEYWORD_ONLY) for each in own if each.name not in groups]
    last = [parameters.pop()] if "as_json" in wanted else []
    last.append(_parameter("context", typer.Context, inspect.Parameter.empty))
    call.__signature__ = inspect.Signature([*parameters, *_list_flags(path), *last])  # type: ignore[attr-defined]
    call.__annotations__ = {}
    return call


def _list_flags(path: str) -> Iterator[inspect.Parameter]:
    from birthmark_sma import config

    for model in (config.Settings, config.NewSecret):
        for name, field in model.model_fields.items():
            setting = config.find_setting(model, name)
            if path in setting.commands:
                default = config.describe_default(model, name)
                source = config.environment_variable(name) + (
                    f", default: {default}" if default else ""
                )
                alias = [setting.aliases[path]] if path in setting.aliases else []
                names = [*alias, setting.flag or f"--{name.replace('_', '-')}"]
                text = " ".join((field.description or "").split())
                yield _make_flag(name, _flag_type(field.annotation), names, f"{text} [{source}]")
    for name, (commands, text) in _PROFILES.items():
        if path in commands:
            yield _parameter(name, Annotated[bool, Option(f"--{name}", help=text)], False)


def _make_flag(name: str, kind: Any, names: list[str], text: str) -> inspect.Parameter:
    return _parameter(name, Annotated[kind | None, Option(*names, help=text)], None)


def _parameter(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    kind = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(name, kind, default=default, annotation=annotation)


def _flag_type(annotation: Any) -> type:
    """Return the type of a flag. Choices, networks and secrets are text; Settings checks them."""
    kinds = [each for each in get_args(annotation) if each is not NoneType] or [annotation]
    found: type = kinds[0] if kinds[0] in {bool, int, float, Path} else str
    return found


def _load(flags: dict[str, Any], path: str, *, remote: bool) -> dict[str, Any]:
    """Return the settings from flags, environment and settings file, in this order of precedence.

    `path` is the command; `choose_authority` says which authority it works on. A flag with the
    value None was not given. Print a warning if --database-url holds a password, because other
    users of the machine can read the arguments of a process.
    """
    from birthmark_sma.config import NewSecret, load_new_secret, load_settings

    new = {name: flags.pop(name) for name in NewSecret.model_fields if name in flags}
    published, prototype, sandbox = (
        flags.pop(name, False) for name in ("published", "prototype", "sandbox")
    )
    if published:
        if prototype or flags["tables"] is not None or flags["keys_per_table"] is not None:
            raise ConfigurationError(
                "--published fixes the sizes. Leave out --prototype, --tables and --keys-per-table."
            )
        flags |= asdict(PUBLISHED_SIZES)
    warn_of_password("--database-url", flags.get("database_url") or "")
    settings = load_settings(flags, os.environ, prototype=prototype, sandbox=sandbox)
    settings = choose_authority(settings, flags, path, remote=remote)
    if settings.server is not None and flags["server"] is None:
        # A password in the URL is refused later, and must not be printed before.
        print_stderr(f"Server: {settings.server.rpartition('@')[2]} (SMA_SERVER)")
    return {
        "settings": settings,
        "sandbox": sandbox,
        "new_secret": load_new_secret(new, os.environ) if new else None,
    }


def warn_of_password(flag: str, database_url: str) -> None:
    """Print a warning if the value of a flag holds a password."""
    if _holds_password(database_url):
        print_stderr(
            f"WARNING: every user of this machine can read the password in {flag}. Set"
            " DATABASE_URL instead."
        )


def _holds_password(database_url: str) -> bool:
    """Return whether a URL, or a string of libpq parameters, holds a password."""
    try:
        return urlsplit(database_url).password is not None or "password=" in database_url
    except ValueError:
        return False
