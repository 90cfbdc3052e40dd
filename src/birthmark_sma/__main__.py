"""`python -m birthmark_sma` is `sma`."""

from birthmark_sma.cli.main import run

run()
