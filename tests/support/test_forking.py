"""Forked processes start fast, because the fork server has imported every module."""

import pkgutil
import sys

import birthmark_sma
from tests.support.programs.fork_server import FORKING


def _assert_imported(names: set[str]) -> None:
    assert names <= sys.modules.keys(), names - sys.modules.keys()


def test_all_is_imported_before_the_fork() -> None:
    """A module that the fork server did not import makes every test with a command slower."""
    package = pkgutil.walk_packages(birthmark_sma.__path__, "birthmark_sma.")
    names = {each.name for each in package} | {"tests.support.cameras.killed_camera"}
    process = FORKING.Process(target=_assert_imported, args=(names - {"birthmark_sma.__main__"},))
    process.start()
    process.join()
    assert process.exitcode == 0
