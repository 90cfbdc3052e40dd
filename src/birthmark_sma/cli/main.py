"""Entry point of `sma`: register every command, print errors and exit with their codes.

The package's console script and `python -m birthmark_sma` call `run`. Every expected error ends in
one sentence on stderr. No traceback may show the values of local variables.
"""

import os
import platform
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.exceptions import TyperException

from birthmark_sma import HOW_TO_INSTALL, __version__
from birthmark_sma.cli import exit_codes
from birthmark_sma.cli.batch.command import provision_batch
from birthmark_sma.cli.commands import (
    acts,
    audit,
    ca,
    ca_changes,
    demo,
    devices,
    history,
    keys,
    renewals,
    secrets,
    tables,
    validations,
)
from birthmark_sma.cli.commands.backup import backup, restore
from birthmark_sma.cli.commands.doctor import doctor
from birthmark_sma.cli.commands.init import init, migrate
from birthmark_sma.cli.commands.move import move
from birthmark_sma.cli.commands.provision import provision
from birthmark_sma.cli.commands.serve import serve
from birthmark_sma.cli.commands.top import top
from birthmark_sma.cli.commands.validate import validate
from birthmark_sma.cli.drill.command import drill
from birthmark_sma.cli.options import CommandGroup, Json, command
from birthmark_sma.cli.output import print_json, print_line, print_stderr
from birthmark_sma.cli.simulate import commands
from birthmark_sma.errors import BirthmarkError

_HELP = """The Birthmark Standard's Simulated Manufacturer Authority.

It certifies cameras, gives them key tables, and validates camera tokens.

\b
First steps:
  sma demo     shows a camera, a picture and the verdicts
  sma serve    runs an authority on http://127.0.0.1:8000
"""

_EPILOG = """Settings come from flags, then from the environment (DATABASE_URL, CA_PASSWORD, PORT,
SMA_*), then from sma.toml.

\b
Exit codes:
  0  done, or PASS             4  the database is down, empty or of another version,
                                  or the server does not answer
  1  FAIL                      5  a conflict with registered data
  2  wrong usage               6  a key, serial, token or line was refused
  3  a setting or secret is missing or wrong
"""

_VERSION = f"birthmark-sma {__version__} (Python {platform.python_version()})"

app = typer.Typer(
    name="sma",
    cls=CommandGroup,
    help=_HELP,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=_EPILOG,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # importing rich takes longer than everything else in `sma --help`
    pretty_exceptions_enable=False,  # a traceback with local variables could show secrets
)

command(app, "serve")(serve)
app.command()(demo.demo)
command(app, "init")(init)
command(app, "migrate")(migrate)
command(app, "doctor")(doctor)
command(app, "drill")(drill)
command(app, "top")(top)
command(app, "backup")(backup)
command(app, "restore")(restore)
command(app, "move")(move)
command(app, "provision")(provision)
command(app, "provision-batch")(provision_batch)
command(app, "validate")(validate)
ca_changes.register(ca.app)
for group, name in (
    (commands.app, "simulate"),
    (devices.app, "devices"),
    (renewals.app, "renewals"),
    (tables.app, "tables"),
    (ca.app, "ca"),
    (history.app, "history"),
    (audit.app, "audit"),
    (validations.app, "validations"),
    (keys.app, "keys"),
    (acts.app, "acts"),
    (secrets.app, "secrets"),
):
    app.add_typer(group, name=name, cls=CommandGroup)


def _print_version(asked: bool) -> None:
    if asked:
        print_line(_VERSION)
        raise typer.Exit


@app.callback()
def _options(
    _version: Annotated[
        bool,
        typer.Option(
            "--version", is_eager=True, callback=_print_version, help="Show the version and exit."
        ),
    ] = False,
    server: Annotated[
        str | None,
        typer.Option(help="Work on the authority of this server, over its API. [SMA_SERVER]"),
    ] = None,
    server_key_file: Annotated[
        Path | None,
        typer.Option(
            help="A file with the access key for the server. Or set SMA_SERVER_KEY."
            " [SMA_SERVER_KEY_FILE]"
        ),
    ] = None,
    server_ca_file: Annotated[
        Path | None,
        typer.Option(
            help="The CAs (PEM) that the server's TLS certificate comes from. Default: those of"
            " this system. [SMA_SERVER_CA_FILE]"
        ),
    ] = None,
) -> None:
    """Take the flags that stand before the command. `cli/options.py` reads them."""


@app.command()
def version(as_json: Json = False) -> None:
    """Show the version of this program."""
    if as_json:
        print_json({"version": __version__, "python": platform.python_version()})
    else:
        print_line(_VERSION)


def run() -> None:
    """Run the command line. Print an expected error as one sentence and exit with its code.

    A ModuleNotFoundError of the package itself is raised unchanged: it is a bug, and not a missing
    extra of the installation.
    """
    try:
        sys.exit(app(standalone_mode=False))
    except typer.Abort:
        _refuse("Stopped: nothing was changed", exit_codes.FAILED)
    except TyperException as error:
        _refuse_usage(error)
    except BirthmarkError as error:
        advice = getattr(error, "advice", "")
        _refuse(f"{error}: {advice}" if advice else str(error), exit_codes.exit_code(error))
    except BrokenPipeError:
        # The reader closed the pipe, as `head` does. Python flushes stdout at exit, and that flush
        # would fail again, so stdout goes to /dev/null.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(exit_codes.OK)
    except UnicodeError:
        _refuse("An argument or a file is not valid UTF-8 text", exit_codes.USAGE)
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        _refuse(
            f"{error.strerror or 'The operating system refused'}{where}", exit_codes.CONFIGURATION
        )
    except ModuleNotFoundError as error:
        if error.name is not None and error.name.startswith("birthmark_sma"):
            raise
        print_stderr(f"sma: {error.name} is not installed. {HOW_TO_INSTALL}")
        sys.exit(exit_codes.CONFIGURATION)


def _refuse_usage(error: Any) -> None:
    """Print the usage of the command, what is wrong and where its help is."""
    message = error.format_message()
    if error.ctx is not None:
        print_stderr(error.ctx.get_usage())
        message = f"{message.rstrip('.')}. For help, type: {error.ctx.command_path} --help"
    _refuse(message, error.exit_code)


def _refuse(sentence: str, code: int) -> None:
    print_stderr(f"sma: {sentence}" if sentence.endswith((".", "?", "!")) else f"sma: {sentence}.")
    sys.exit(code)
