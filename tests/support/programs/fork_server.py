"""Processes forked from one that has imported everything already: in milliseconds.

Python has one such process for a whole program, and whoever last says what it imports decides for
all. So that is said here, and nowhere else.
"""

import multiprocessing
import pkgutil

import birthmark_sma

FORKING = multiprocessing.get_context("forkserver")
FORKING.set_forkserver_preload(
    [
        "alembic.command",  # and what else is imported late
        "rich.progress",
        "tests.support.derivation_cost",
        "tests.support.cameras.killed_camera",
        *(
            each.name
            for each in pkgutil.walk_packages(birthmark_sma.__path__, "birthmark_sma.")
            if not each.name.endswith("__main__")
        ),
    ]
)
