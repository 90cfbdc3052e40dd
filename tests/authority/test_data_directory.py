"""What a data directory remembers, what is refused because of it, and what is not."""

from pathlib import Path

import pytest

from birthmark_sma.authority.data_directory import (
    check_may_create,
    check_not_forgotten,
    check_same,
    describe_database,
    describe_difference,
    find_known,
    remember,
)
from birthmark_sma.config import Settings, load_settings
from birthmark_sma.errors import ConfigurationError

OURS, OTHER = "ab" * 32, "cd" * 32
URL = "postgresql://sma:hush@db.example.org:5433/sma"


def settings(folder: Path, database_url: str | None = None) -> Settings:
    """Return settings with this data directory."""
    return load_settings({"data_dir": folder, "database_url": database_url}, {})


def test_a_directory_without_a_file_refuses_nothing(tmp_path: Path) -> None:
    """As the disk of a hosting platform after each restart."""
    for given in (settings(tmp_path), settings(tmp_path, URL), settings(tmp_path / "none", URL)):
        assert find_known(given) is None
        check_not_forgotten(given)
        check_may_create(given, find_known(given))
        check_same(given, OURS)


def test_a_directory_that_does_not_exist_is_not_created(tmp_path: Path) -> None:
    """Nor is one that cannot be written an error."""
    remember(settings(tmp_path / "none", URL), OURS)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "authority.json").mkdir()  # nobody can replace it by a file
    remember(settings(tmp_path, URL), OURS)
    assert find_known(settings(tmp_path)) is None


def test_no_password_is_remembered(tmp_path: Path) -> None:
    """Threat 28."""
    remember(settings(tmp_path, URL), OURS)
    known = find_known(settings(tmp_path))
    assert known is not None
    assert known.database == "PostgreSQL, database sma on db.example.org, port 5433"
    assert "hush" not in (tmp_path / "authority.json").read_text()


def test_a_forgotten_database_url_is_noticed(tmp_path: Path) -> None:
    """Only if DATABASE_URL is not set: one that is set was not forgotten."""
    remember(settings(tmp_path, URL), OURS)
    with pytest.raises(ConfigurationError, match=r"abababababababab in PostgreSQL.*db\.example"):
        check_not_forgotten(settings(tmp_path))
    check_not_forgotten(settings(tmp_path, URL))
    check_not_forgotten(settings(tmp_path, f"sqlite:///{tmp_path / 'sma.db'}"))
    remember(settings(tmp_path), OURS)
    check_not_forgotten(settings(tmp_path))


def test_no_second_authority_is_created(tmp_path: Path) -> None:
    """Neither on SQLite nor on PostgreSQL; from SQLite to PostgreSQL, the move is named."""
    remember(settings(tmp_path), OURS)
    new = settings(tmp_path, URL)
    with pytest.raises(ConfigurationError, match="type: sma move"):
        check_may_create(new, find_known(new))
    remember(settings(tmp_path, URL), OURS)
    with pytest.raises(ConfigurationError, match="use another --data-dir") as refused:
        check_may_create(new, find_known(new))
    assert "sma move" not in str(refused.value)


def test_another_authority_is_noticed(tmp_path: Path) -> None:
    """One with the same id is the same authority, wherever its database is."""
    remember(settings(tmp_path, URL), OURS)
    elsewhere = settings(tmp_path, "postgresql://other.example.org/sma")
    assert describe_difference(elsewhere, OURS) is None
    with pytest.raises(ConfigurationError, match=r"cdcd.*other\.example.*abab.*db\.example"):
        check_same(elsewhere, OTHER)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"\xff", b'{"authority_id": "x"}', b" " * 99]
)
def test_a_damaged_file_is_an_error(tmp_path: Path, content: bytes) -> None:
    """To ignore it would take the protection away in silence."""
    (tmp_path / "authority.json").write_bytes(content)
    with pytest.raises(ConfigurationError, match="is damaged"):
        find_known(settings(tmp_path))


@pytest.mark.parametrize(
    ("url", "described"),
    [
        ("postgresql:///sma?host=a,b&password=hush", "PostgreSQL, database sma on a,b"),
        ("host=/run user=x password=hush", "PostgreSQL on /run"),
        ("postgresql://", "PostgreSQL"),
        ("postgresql://a:hush@[::1", "PostgreSQL"),
        ("sqlite:////tmp/x.db", "SQLite, /tmp/x.db"),
    ],
)
def test_descriptions(url: str, described: str) -> None:
    """Every form of a URL, without user and password."""
    assert describe_database(url) == described
