"""Run the command line: `python -m birthmark_sma` is the same as `sma`.

It needs the extra `server`. Without that it prints what to install and exits with status 3.
"""

import sys


def run() -> None:
    """Run the command line, or print what to install for it and exit with status 3."""
    try:
        from birthmark_sma.cli.main import run as run_command  # noqa: PLC0415  it may be absent
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("birthmark_sma"):
            raise
        print(  # noqa: T201  what the command line prints with is what is missing
            "sma: this is birthmark-sma for cameras and aggregation servers; for the command line"
            " and the authority type: pip install 'birthmark-sma[server]'",
            file=sys.stderr,
        )
        sys.exit(3)
    run_command()


if __name__ == "__main__":
    run()
