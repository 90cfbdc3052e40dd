"""A library without a method that is overridden stops the start, in one sentence."""

import inspect
import tomllib
from pathlib import Path

import pytest
from psycopg import pq

from birthmark_sma.errors import ConfigurationError
from birthmark_sma.runtime.library_methods import require_methods
from birthmark_sma.storage import postgresql_driver
from birthmark_sma.web.transport import uvicorn_config
from birthmark_sma.web.transport.client_identity import ClientIdentityProtocol
from birthmark_sma.web.transport.protocol import LimitedHttpProtocol

ROOT = Path(__file__).parents[2]


class Protocol:
    """A later version of a class, in which one method has another name."""

    def on_url(self) -> None: ...


def test_a_missing_method_is_named() -> None:
    require_methods("uvicorn", Protocol, ["on_url"])
    with pytest.raises(ConfigurationError, match=r"^uvicorn [0-9.]+ has no Protocol\.on_header, "):
        require_methods("uvicorn", Protocol, ["on_url", "on_header"])


def test_what_is_no_method_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Protocol, "on_url", None)
    with pytest.raises(ConfigurationError):
        require_methods("uvicorn", Protocol, ["on_url"])


def test_a_server_does_not_start_without_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """The list is the one of this server, with a class that lacks most of it."""
    uvicorn_config.check_uvicorn()
    [names, *_] = uvicorn_config.METHODS.values()
    monkeypatch.setattr(uvicorn_config, "METHODS", {Protocol: names})
    with pytest.raises(ConfigurationError, match=r"Protocol\.connection_made"):
        uvicorn_config.check_uvicorn()


def test_no_database_is_opened_without_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pq, "PGconn", Protocol)
    with pytest.raises(ConfigurationError, match=r"^psycopg .* has no Protocol\.exec_"):
        postgresql_driver.create(lambda: pytest.fail("no connection is opened"))


def test_they_are_pinned_below_the_next_minor_version() -> None:
    """Private methods may change in any."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    needed = project["project"]["optional-dependencies"]["server"]
    for name in ("psycopg[binary]", "uvicorn[standard]"):
        [bounds] = [each.removeprefix(name) for each in needed if each.startswith(name)]
        least, below = (each.lstrip("<>=").split(".") for each in bounds.split(","))
        assert (least[0], int(least[1]) + 1) == (below[0], int(below[1]))


def test_the_list_has_all_that_is_overridden() -> None:
    """Every method of the protocols that uvicorn has, too."""

    for theirs, names in uvicorn_config.METHODS.items():
        for ours in (LimitedHttpProtocol, ClientIdentityProtocol):
            if issubclass(ours, theirs):
                replaced = {
                    name
                    for name, _ in inspect.getmembers(theirs, callable)
                    if name in vars(ours) and not name.startswith("__")
                }
                assert replaced <= set(names)
