"""The name of who runs a command, whatever the environment says."""

import getpass
import os
import socket

import pytest

from birthmark_sma.cli.actor import find_actor


@pytest.fixture(autouse=True)
def host(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host with a name, and a user without sudo."""
    monkeypatch.setattr(socket, "gethostname", lambda: "vault")
    monkeypatch.setenv("LOGNAME", "root")
    monkeypatch.delenv("SUDO_USER", raising=False)


def test_user_and_host() -> None:
    assert find_actor().name == "root@vault"


def test_behind_sudo(monkeypatch: pytest.MonkeyPatch) -> None:
    """The person is named, and not root."""
    monkeypatch.setenv("SUDO_USER", "olga")
    assert find_actor().name == "olga@vault"


@pytest.mark.parametrize("error", [KeyError, OSError])
def test_a_user_without_a_name(monkeypatch: pytest.MonkeyPatch, error: type[Exception]) -> None:
    """As in a container. Python raises one or the other, by its version."""

    def find_user() -> str:
        raise error

    monkeypatch.setattr(getpass, "getuser", find_user)
    assert find_actor().name == f"{os.getuid()}@vault"


@pytest.mark.parametrize(
    ("user", "actor"),
    [
        ("o\udcfflga", "o?lga@vault"),  # a byte that is no UTF-8: PostgreSQL refuses it
        ("o\x1b[2Jlga", "o?[2Jlga@vault"),  # terminals act on it
        ("o" * 100, "o" * 64),  # the size of the columns
    ],
)
def test_what_no_column_can_hold(monkeypatch: pytest.MonkeyPatch, user: str, actor: str) -> None:
    monkeypatch.setenv("SUDO_USER", user)
    assert find_actor().name == actor
