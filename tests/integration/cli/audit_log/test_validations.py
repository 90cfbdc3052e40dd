"""`sma validations`: find a request, and say why its tokens failed."""

import json
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import insert

from birthmark_sma.authority.access.store import AccessKey, KeyScope
from birthmark_sma.authority.validation import replay_ledger
from birthmark_sma.authority.validation.records import AuditRow
from birthmark_sma.authority.validation.store import make_store
from birthmark_sma.protocol.camera_token import CameraToken, to_wire, token_digest
from birthmark_sma.protocol.key_derivation import PUBLISHED_CLIENTS
from birthmark_sma.protocol.replay import SeenToken
from birthmark_sma.storage.engine import open_database
from birthmark_sma.storage.schema.access import access_keys
from tests.integration.cli.conftest import Place, assert_refused
from tests.support.audit_rows import AuditWriter
from tests.support.days import current_time
from tests.support.programs.server import PASSPHRASE
from tests.support.schemas import give_schema

TOKEN = CameraToken(bytes(48), 7, 8, bytes(12))


@dataclass
class Asked:
    """A database with a batch of three tokens and a single one, and the commands on it."""

    place: Place
    url: str
    key_id: str

    def sma(self, *arguments: str, **more: Any) -> Any:
        """Run a command on this database."""
        settings = {"DATABASE_URL": self.url, "CA_PASSWORD": PASSPHRASE}
        return self.place.sma("validations", *arguments, settings=settings, **more)

    def json(self, *arguments: str) -> Any:
        """Run a command that succeeds, and return what it prints."""
        result = self.sma(*arguments, "--json")
        assert result.returncode == 0, result.stderr
        return json.loads(result.stdout)


@pytest.fixture
def asked(database_url: str, tmp_path: Path) -> Asked:
    give_schema(database_url)
    database = open_database(database_url)
    key_id, now = "abcdefghij", current_time()
    key = AccessKey(key_id, "aggregator-1", KeyScope.VALIDATE, now)
    first = AuditRow(
        *(bytes(48), 7, 8, "FAIL", "not_opened", None, now - timedelta(hours=2), "192.0.2.1"),
        *(None, None, "single", None, token_digest(TOKEN, PUBLISHED_CLIENTS), 1_234),
    )
    batch = [
        first._replace(
            key_index=number,
            validation_result="PASS" if number else "FAIL",
            reason="genuine" if number else "device_suspended",
            device_serial="camera-1",
            validated_at=now - timedelta(minutes=1),
            caller=key_id,
            request_id="a-batch",
            batch_position=number,
            token_digest=bytes(15) + bytes([number]),
        )
        for number in range(3)
    ]
    with database.write() as transaction:
        transaction.execute(insert(access_keys).values(**asdict(key), generation=1))
        writer, store = AuditWriter(), make_store(database)
        for rows in ([first], batch):
            writer.write(transaction, rows)
        for caller in ("ip:192.0.2.1", f"key:{key_id}"):
            seen = SeenToken(token_digest(TOKEN, PUBLISHED_CLIENTS), caller)
            replay_ledger.note(store, transaction, [seen], first.validated_at)
    database.close()
    return Asked(Place(tmp_path), database_url, key_id)


def test_a_request_of_one_token(asked: Asked) -> None:
    """Everything in fields: the reason in words, and what to do about it."""
    result = asked.sma("show", "single")
    assert result.returncode == 0, result.stderr
    for text in (
        *("FAIL", "not_opened", "does not open under the key", "test vectors", "1.2 ms"),
        *("192.0.2.1, without an access key", token_digest(TOKEN, PUBLISHED_CLIENTS).hex()),
        *("first seen", "1 time, last", f"key:{asked.key_id} (aggregator-1)"),
    ):
        assert text in result.stdout
    [shown] = asked.json("show", "single")["validations"]
    assert (shown["reason"], shown["table_id"], shown["waited_us"]) == ("not_opened", 7, 1_234)
    assert shown["token_digest"] == token_digest(TOKEN, PUBLISHED_CLIENTS).hex()
    assert shown["first_caller"] == "ip:192.0.2.1"
    assert [each["caller"] for each in shown["seen_again"]] == [f"key:{asked.key_id}"]
    assert shown["meaning"] in result.stdout


def test_a_request_of_several_tokens(asked: Asked) -> None:
    """A line for each, then each reason once."""
    result = asked.sma("show", "a-batch")
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert [line.split()[0] for line in lines[:4]] == ["POSITION", "0", "1", "2"]
    assert result.stdout.count("The device is suspended.") == 1
    assert f"key:{asked.key_id} (aggregator-1), from 192.0.2.1" in result.stdout
    shown = asked.json("show", "a-batch")
    assert shown["request_id"] == "a-batch"
    assert [each["batch_position"] for each in shown["validations"]] == [0, 1, 2]


def test_a_request_without_rows(asked: Asked) -> None:
    """It says what that can mean, and what to do."""
    assert_refused(asked.sma("show", "nothing"), 5, "try again in a minute", "server's log")


def test_filters_and_pages(asked: Asked) -> None:
    def found(*arguments: str) -> list[tuple[str, int]]:
        rows = asked.json("list", *arguments)["validations"]
        return [(row["request_id"], row["key_index"]) for row in rows]

    everything = [("a-batch", 2), ("a-batch", 1), ("a-batch", 0), ("single", 8)]
    assert found() == everything
    assert found("--result", "FAIL") == [("a-batch", 0), ("single", 8)]
    assert found("--reason", "device_suspended") == [("a-batch", 0)]
    assert found("--device", "camera-1", "--result", "PASS") == everything[:2]
    assert found("--table", "7", "--since", "90m") == everything[:3]
    assert found("--until", "90m") == everything[3:]
    assert found("--since", "2020-01-01", "--until", "2020-01-02T00:00Z") == []
    assert found("--caller", asked.key_id) == everything[:3]
    assert found("--caller", "192.0.2.1") == everything[3:]
    assert found("--request-id", "single") == everything[3:]
    assert found("--token-digest", "00" * 15 + "01") == [("a-batch", 1)]
    assert found("--repeat", "replayed") == []
    place = None
    pages: list[list[int]] = []
    while place is not None or not pages:
        page = asked.json("list", "--limit", "3", *(("--before", place) if place else ()))
        pages.append([row["key_index"] for row in page["validations"]])
        place = page["next_cursor"]
    assert pages == [[2, 1, 0], [8]]
    printed = asked.sma("list", "--limit", "1").stdout
    assert "For the next page: --before '" in printed
    assert asked.sma("list", "--request-id", "x").stdout == "No validation is like that.\n"


def test_a_token_is_found_by_itself(asked: Asked, tmp_path: Path) -> None:
    """Under either key derivation: who asks has the token, and no digest."""
    file = tmp_path / "token.json"
    file.write_text(json.dumps(to_wire(TOKEN)))
    [row] = asked.json("list", "--camera-token", str(file))["validations"]
    assert row["request_id"] == "single"


@pytest.mark.parametrize(
    "arguments",
    [
        ("--token-digest", "00"),
        ("--token-digest", "zz" * 16),
        ("--since", "yesterday"),
        ("--since", "9999-12-31T23:59-23:59"),
        ("--before", "x"),
        ("--result", "MAYBE"),
        ("--token-digest", "00" * 16, "--camera-token", "-"),
    ],
)
def test_what_cannot_be_meant_is_refused(asked: Asked, arguments: tuple[str, ...]) -> None:
    result = asked.sma("list", *arguments, stdin="{}")
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr
