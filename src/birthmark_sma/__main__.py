"""Run the command line: `python -m birthmark_sma` is the same as `sma`.

It needs the extra `server`. Without that it prints what to install and exits with status 3.
"""

import sys

from birthmark_sma import HOW_TO_INSTALL


def run() -> None:
    """Run the command line, or print what to install for it and exit with status 3."""
    try:
        from birthmark_sma.cli.main import run as run_command  # noqa: PLC0415  it may be absent
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("birthmark_sma"):
            raise
        print(  # noqa: T201  what the command line prints with is what is missing
            "sma: this environment has birthmark-sma without the command line and the server."
            f" {HOW_TO_INSTALL}",
            file=sys.stderr,
        )
        sys.exit(3)
    run_command()


if __name__ == "__main__":
    run()
