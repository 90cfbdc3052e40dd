"""Measure the time from the start of `sma serve` to its first verdict, on an existing authority."""

import time

import httpx2

from bench.figures import POSTGRESQL, SQLITE
from bench.parts.open_load import passed
from bench.parts.stage import Filled, Stage
from birthmark_sma.web.api.validate import PATH


def measure(stage: Stage) -> None:
    """Start the server on each database, in turn, and note the seconds to its first PASS."""
    sides = {POSTGRESQL: stage.main(), SQLITE: stage.on_sqlite()}
    for _ in range(stage.options.rounds):
        for database, filled in sides.items():
            seconds = _seconds_to_first_verdict(filled)
            stage.report.read(name_of(database), "s", seconds)
            stage.say(f"{name_of(database)}: {seconds:.2f} s")


def name_of(database: str) -> str:
    """Return the name of the reading for a database."""
    return f"second start to first verdict, {database}"


def _seconds_to_first_verdict(filled: Filled) -> float:
    began = time.perf_counter()
    # The server prints its URL as soon as it listens.
    with filled.site.serve() as server:
        answer = httpx2.post(
            server.url + PATH,
            content=filled.bodies[0],
            headers={"Content-Type": "application/json"},
            trust_env=False,
        )
        seconds = time.perf_counter() - began
    if not passed(answer.content):
        raise RuntimeError(f"The first token did not pass: {answer.status_code} {answer.text}")
    return seconds
