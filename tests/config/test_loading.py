"""Settings: which source wins, what is refused, and that no message shows a secret."""

import itertools
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from birthmark_sma.config import (
    CONFIG_FILE_VARIABLE,
    PROTOTYPE,
    Disclosure,
    Settings,
    environment_variable,
    load_settings,
)
from birthmark_sma.errors import ConfigurationError
from birthmark_sma.pki.keys.ca_keys import CaKeyType
from birthmark_sma.protocol.key_table import PROTOTYPE_SIZES, STANDARD_SIZES, TableSizes

SECRET = "c0rrect-horse-battery"

GOOD_VALUES: Mapping[str, str] = {
    "data_dir": "elsewhere",
    "server": "https://sma.example.org",
    "server_key": SECRET,
    "server_key_file": "server.key",
    "server_ca_file": "cas.crt",
    "database_url": f"postgresql://sma:{SECRET}@db.example.org/sma",
    "ca_password": SECRET,
    "kek_file": "kek",
    "kek_command": "kms decrypt sma",
    "root_key_file": "root.key",
    "log_format": "json",
    "log_level": "debug",
    "slow_query_ms": "250",
    "traces_url": "http://collector.example.org:4318/v1/traces",
    "host": "0.0.0.0",
    "port": "1234",
    "workers": "2",
    "one_core": "false",
    "access": "open",
    "publish_pki": "true",
    "tls_cert": "server.crt",
    "tls_key": "server.key",
    "tls_client_ca": "clients.crt",
    "tls_self": "true",
    "trusted_proxies": "10.0.0.1, 2001:db8::/32",
    "public_url": "https://sma.example.org",
    "manufacturer_id": "Another",
    "replay": "refuse-same-caller",
    "disclosure": "none",
    "ca_key_type": "ec-p384",
    "tables": "10",
    "keys_per_table": "20",
    "max_body_bytes": "2048",
    "pool_limit": "5",
    "batch_limit": "6",
    "database_wait": "20",
    "answer_timeout": "2.5",
    "request_timeout": "12.5",
    "rate_provision": "10/minute",
    "rate_validate": "100/second; 3000/minute",
    "rate_failures": "20/hour",
    "rate_admin": "none",
    "rate_ocsp": "10/second",
    "rate_renew": "10/hour; 20/day",
    "renewal_grace_days": "30",
    "rate_guesses": "5/minute",
    "rate_store": f"rediss://:{SECRET}@redis.example.org/1",
    "cors_origins": "https://app.example.org,http://localhost:3000",
    "audit_retention_days": "90",
    "privacy_days": "30",
    "abuse": "suspend",
    "abuse_factor": "2.5",
    "abuse_least": "50",
}
"""One value for every setting, as an environment gives it, and none of them a default."""


@pytest.fixture(autouse=True)
def empty_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep a settings file of the developer's out of these tests."""
    monkeypatch.chdir(tmp_path)


def refusal_of(flags: Mapping[str, Any], environ: Mapping[str, str]) -> str:
    """Return why these are refused, once it is certain that not even a traceback has a secret."""
    with pytest.raises(ConfigurationError) as refused:
        load_settings(flags, environ)
    assert SECRET not in "".join(traceback.format_exception(refused.value))
    return str(refused.value)


# --- where a value comes from


@pytest.mark.parametrize("given", list(itertools.product([False, True], repeat=4)))
def test_the_strongest_source_wins(given: tuple[bool, ...]) -> None:
    """A flag beats the environment, which beats the file, which beats the profile's default."""
    flag, variable, file, prototype = given
    if file:
        Path("sma.toml").write_text("port = 3003\n")
    settings = load_settings(
        {"port": 1001} if flag else {},
        {"PORT": "2002"} if variable else {},
        prototype=prototype,
    )
    strongest = [
        port for port, present in zip((1001, 2002, 3003, 5001), given, strict=True) if present
    ]
    assert settings.port == (strongest or [8000])[0]


def test_the_sources_are_merged_setting_by_setting() -> None:
    """A source that sets one thing leaves the others to weaker sources."""
    Path("sma.toml").write_text('host = "file"\nworkers = 3\nmanufacturer_id = "file"\n')
    settings = load_settings({"host": "flag"}, {"SMA_HOST": "environment", "SMA_WORKERS": "2"})
    assert (settings.host, settings.workers, settings.manufacturer_id) == ("flag", 2, "file")


def test_a_flag_that_was_not_given_is_none() -> None:
    """None is how the command line says that a flag is absent."""
    assert load_settings({"port": None}, {"PORT": "2002"}).port == 2002


@pytest.mark.parametrize("field", Settings.model_fields)
def test_an_empty_variable_is_unset(field: str) -> None:
    """A platform that sets a variable to nothing has not set it."""
    assert load_settings({}, {environment_variable(field): ""}) == load_settings({}, {})


@pytest.mark.parametrize("field", Settings.model_fields)
def test_every_setting_has_a_variable(field: str) -> None:
    """Each setting is read from its own variable, and from no other."""
    default = load_settings({}, {})
    settings = load_settings({}, {environment_variable(field): GOOD_VALUES[field]})
    changed = {
        name for name in Settings.model_fields if getattr(settings, name) != getattr(default, name)
    }
    assert changed == {field}


def test_the_platforms_names_have_no_prefix() -> None:
    """Three variables are named by the hosting platforms, all others by us."""
    names = {field: environment_variable(field) for field in Settings.model_fields}
    unprefixed = {field for field, name in names.items() if not name.startswith("SMA_")}
    assert unprefixed == {"database_url", "ca_password", "port"}
    assert names["port"] == "PORT"
    assert names["data_dir"] == "SMA_DATA_DIR"


def test_variables_of_others_are_ignored() -> None:
    """Only the prefix makes a variable ours."""
    environ = {"PATH": "/bin", "HOST": "0.0.0.0", "SMALL": "1", "PORTS": "x", "sma_port": "x"}
    assert load_settings({}, environ) == load_settings({}, {})


def test_a_named_file_is_read(tmp_path: Path) -> None:
    """SMA_CONFIG_FILE names another file than sma.toml, which is then left alone."""
    Path("sma.toml").write_text("port = 1\n")
    named = tmp_path / "named.toml"
    named.write_text('port = 4004\ndisclosure = "family"\n')
    settings = load_settings({}, {CONFIG_FILE_VARIABLE: str(named)})
    assert settings.port == 4004
    assert settings.disclosure is Disclosure.FAMILY


# --- what is refused


@pytest.mark.parametrize(
    ("unknown", "meant"),
    [
        ("SMA_DATADIR", "SMA_DATA_DIR"),
        ("SMA_HOTS", "SMA_HOST"),
        ("SMA_CONFIG", "SMA_CONFIG_FILE"),
        ("SMA_DISCLOSE", "SMA_DISCLOSURE"),
        ("SMA_DATABASE_URL", "DATABASE_URL"),
        ("SMA_CA_PASSWORD", "CA_PASSWORD"),
        ("SMA_PORT", "PORT"),
    ],
)
def test_an_unknown_variable_names_the_nearest(unknown: str, meant: str) -> None:
    """Nobody loses a safe default to a misspelling."""
    message = refusal_of({}, {unknown: SECRET})
    assert message == f"{unknown} is not a setting. Did you mean {meant}?"


def test_an_unknown_key_in_the_file_names_the_nearest() -> None:
    """The file is read as strictly as the environment."""
    Path("sma.toml").write_text(f'pasword = "{SECRET}"\n')
    message = refusal_of({}, {})
    assert message == "pasword in sma.toml is not a setting. Did you mean ca_password?"


def test_an_unknown_flag_is_refused() -> None:
    """A command cannot pass on what no setting takes."""
    refusal_of({"pasword": SECRET}, {})


@pytest.mark.parametrize(
    ("field", "bad"),
    [
        ("port", SECRET),
        ("port", "65536"),
        ("port", "-1"),
        ("port", "80.5"),
        ("workers", "0"),
        ("workers", "257"),
        ("access", SECRET),
        ("disclosure", SECRET),
        ("ca_key_type", "rsa-1024"),
        ("public_url", f"sma.example.org/{SECRET}"),
        ("public_url", f"javascript:{SECRET}"),
        ("manufacturer_id", SECRET * 10),
        ("tables", SECRET),
        ("tables", "2"),
        ("tables", "0"),
        ("tables", "-5"),
        ("tables", "2147483648"),
        ("keys_per_table", "0"),
        ("keys_per_table", "2147483648"),
        ("max_body_bytes", "1"),
        ("pool_limit", "0"),
        ("batch_limit", "0"),
        ("database_wait", "-1"),
        ("answer_timeout", "0"),
        ("answer_timeout", "nan"),
        ("answer_timeout", SECRET),
    ],
)
def test_a_bad_value_names_the_variable_and_never_the_value(field: str, bad: str) -> None:
    """Threat 28: a value in the wrong variable may be a password, so no message repeats it."""
    message = refusal_of({}, {environment_variable(field): bad})
    assert environment_variable(field) in message
    assert message.endswith(".")
    assert not bad.startswith(SECRET) or bad not in message


@pytest.mark.parametrize("content", [f'ca_password = ["{SECRET}"]', 'database_url = { a = "b" }'])
def test_a_secret_of_the_wrong_type_is_not_shown(content: str) -> None:
    """Threat 28: a file's mistake about a secret does not print the secret."""
    Path("sma.toml").write_text(content)
    Path("sma.toml").chmod(0o600)
    assert "cannot be used" in refusal_of({}, {})


def test_an_empty_passphrase_in_the_file_is_refused() -> None:
    """Threat 5: an empty passphrase must not pass for one, wherever it is written."""
    Path("sma.toml").write_text('ca_password = ""\n')
    Path("sma.toml").chmod(0o600)
    assert "CA_PASSWORD" in refusal_of({}, {})


@pytest.mark.parametrize(
    "content",
    [
        f'ca_password = "{SECRET}',
        f"ca_password = {SECRET}",
        f'ca_password = "{SECRET}"\nca_password = "{SECRET}"',
        f'"{SECRET}',
    ],
)
def test_a_broken_file_is_named_without_its_content(content: str) -> None:
    """Threat 28: a syntax error says where it is, not what stands there."""
    Path("sma.toml").write_text(content)
    Path("sma.toml").chmod(0o600)
    assert refusal_of({}, {}).startswith("The settings file sma.toml cannot be read: ")


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    """Neither bytes outside UTF-8 nor a directory end in a traceback."""
    Path("sma.toml").write_bytes(b"\xff\xfe")
    assert "cannot be read" in refusal_of({}, {})
    assert "cannot be read" in refusal_of({}, {CONFIG_FILE_VARIABLE: str(tmp_path)})


def test_a_named_file_must_exist() -> None:
    """Only the file that nobody named may be absent."""
    assert refusal_of({}, {CONFIG_FILE_VARIABLE: "nowhere.toml"}) == (
        "The settings file nowhere.toml does not exist. Correct SMA_CONFIG_FILE."
    )


@given(st.text(min_size=9).filter(lambda text: "\0" not in text))
def test_no_wrong_number_is_ever_repeated(value: str) -> None:
    """Threat 28: whatever stands where a number belongs, the message is the same."""
    if value.strip().lstrip("+-").replace("_", "").isdigit():
        return
    with pytest.raises(ConfigurationError) as refused:
        load_settings({}, {"SMA_TABLES": value})
    assert value not in str(refused.value)


# --- what one gets


def test_the_defaults() -> None:
    """Without any setting: SQLite beside the program, the loopback address, the full sizes."""
    settings = load_settings({}, {})
    assert settings.data_dir == Path("sma-data")
    assert settings.resolved_database_url == "sqlite:///sma-data/sma.db"
    assert settings.uses_sqlite
    assert (settings.host, settings.port) == ("127.0.0.1", 8000)
    assert settings.table_sizes == STANDARD_SIZES == TableSizes(2_500, 1_000)
    assert settings.manufacturer_id == "SimulatedMfg"
    assert settings.ca_key_type is CaKeyType.RSA_4096
    assert settings.ca_password is None
    assert settings.access is None


def test_the_prototype_profile() -> None:
    """The prototype has 10 tables of 100 keys, and a port and a place of its own."""
    settings = load_settings({}, {}, prototype=True)
    assert settings.table_sizes == PROTOTYPE_SIZES == TableSizes(10, 100)
    assert (settings.host, settings.port) == ("127.0.0.1", 5001)
    assert settings.data_dir != load_settings({}, {}).data_dir
    assert set(PROTOTYPE) == {"tables", "keys_per_table", "port", "data_dir"}


def test_a_given_database_url_is_used() -> None:
    """DATABASE_URL replaces SQLite in the data directory."""
    settings = load_settings({}, {"DATABASE_URL": GOOD_VALUES["database_url"]})
    assert settings.resolved_database_url == GOOD_VALUES["database_url"]
    assert not settings.uses_sqlite


def test_the_public_url_loses_its_last_slash() -> None:
    """Paths are put behind it."""
    settings = load_settings({}, {"SMA_PUBLIC_URL": "https://sma.example.org/"})
    assert settings.public_url == "https://sma.example.org"


def test_settings_show_no_secret() -> None:
    """Threat 28: settings can be printed and logged."""
    settings = load_settings(dict(GOOD_VALUES), {})
    for shown in (repr(settings), str(settings), f"{settings}", settings.model_dump_json()):
        assert SECRET not in shown
    assert settings.ca_password is not None
    assert settings.ca_password.get_secret_value() == SECRET


def test_settings_never_change() -> None:
    """Whoever holds settings can rely on them."""
    settings = load_settings({}, {})
    with pytest.raises(ValidationError):
        settings.port = 1


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604])
def test_a_file_with_a_secret_is_its_owners_alone(mode: int) -> None:
    """Threat 29: a passphrase that others can read is refused, and not shown."""
    Path("sma.toml").write_text(f'ca_password = "{SECRET}"\n')
    Path("sma.toml").chmod(mode)
    message = refusal_of({}, {})
    assert (
        message == "sma.toml holds a secret, and other users can read it. Type: chmod 600 sma.toml"
    )
    Path("sma.toml").write_text("port = 3003\n")
    assert load_settings({}, {}).port == 3003


@pytest.mark.parametrize(
    "url",
    [
        "http://",
        "http://a b",
        "http://b\u00fccher.example",
        "ftp://x",
        "x",
        "https://u@x",
        "https://x/?q",
        "https://x/#f",
    ],
)
def test_a_public_url_that_no_certificate_can_carry_is_refused(url: str) -> None:
    """Told at the start, and not at the first device."""
    assert refusal_of({}, {"SMA_PUBLIC_URL": url}).startswith("SMA_PUBLIC_URL cannot be used")
