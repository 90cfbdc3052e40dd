"""Fork processes in milliseconds from a fork server that has imported everything already.

Python has one fork server for the whole program, and the last call of `set_forkserver_preload`
decides what it imports. So only this module may call it.
"""

import multiprocessing
import pkgutil

import birthmark_sma

FORKING = multiprocessing.get_context("forkserver")
FORKING.set_forkserver_preload(
    [
        "alembic.command",  # this and the next are imported inside functions
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
