"""Every command of `sma`: one that changes the authority leaves one act, and no other leaves any.

A new command must be added to one of the tables here. One authority on each kind of database lives
through all commands.
"""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
from typer.core import TyperGroup
from typer.main import get_command

from birthmark_sma.authority.acts.actor import ActKind
from birthmark_sma.cli.main import app
from birthmark_sma.storage.engine import open_database
from tests.support.authorities import execute
from tests.support.databases.postgres import create_database, drop_database
from tests.support.programs.commands import expect_no_server, sma
from tests.support.programs.server import PASSPHRASE, server_environ

ELSEWHERE = {
    "serve": "creates an authority on a laptop as `init` does; what it serves is in ROUTES",
    "demo": "a server of its own",
    "drill": "acts on a copy",
    "simulate fleet": "requests of devices and aggregation servers",
    "simulate camera": "requests of devices",
    "simulate aggregator": "requests of aggregation servers",
    "top": "reads over HTTP",
    "validate": "a validation: the audit log has it",
    "version": "opens no authority",
}
"""Commands that are not played here, and why they leave no act of their own."""

READS: dict[str, tuple[str, ...]] = {
    "doctor": (),
    "backup": ("{folder}/another-backup",),
    "devices list": (),
    "devices show": ("cam-1",),
    "renewals list": (),
    "tables show": (),
    "tables list": (),
    "tables stragglers": (),
    "tables exposure": ("1",),
    "ca show": (),
    "ca list": (),
    "ca export": ("--output-dir", "{folder}/exported"),
    "history partitions": (),
    "audit verify": (),
    "audit export": ("--output", "{folder}/trail.zip"),
    "audit checkpoints": (),
    "audit public-key": (),
    "validations list": (),
    "validations show": ("no-request-with-this-id",),
    "keys list": (),
    "secrets check": (),
    "acts list": (),
    "acts show": ("1",),
    "acts export": (),
}
"""Commands that change nothing, with arguments for the end of the life."""


@dataclass(frozen=True)
class Step:
    """A command that changes the authority, and the act that it leaves.

    `subject` None means several subjects or one without a name. `before` and `after` must be a part
    of the state of the one subject. `prepare` runs before the command.
    """

    command: str
    arguments: Sequence[str]
    act: ActKind
    subject: str | None = None
    before: dict[str, Any] | None = None
    after: dict[str, Any] | None = None
    subjects: int = 1
    reason: str | None = None
    prepare: Callable[["Life"], None] = field(default=lambda _: None)


@dataclass
class Life:
    """An authority, its environment, and the acts that it has so far."""

    environ: dict[str, str]
    folder: Path
    database_url: str
    acts: list[dict[str, Any]] = field(default_factory=list)

    def sma(self, *arguments: str) -> "CompletedProcess[str]":
        """Run a command."""
        filled = [each.format(folder=self.folder) for each in arguments]
        return sma(*filled, environ=self.environ, cwd=self.folder, before=(expect_no_server,))

    def find_new_acts(self) -> list[dict[str, Any]]:
        """Return the acts since the last call, the newest first."""
        listed = self.sma("acts", "list", "--json", "--limit", "1000")
        assert listed.returncode == 0, listed.stderr
        every: list[dict[str, Any]] = json.loads(listed.stdout)["acts"]
        new = every[: len(every) - len(self.acts)]
        assert every[len(new) :] == self.acts, "an earlier act was changed"
        self.acts = every
        return new

    def sql(self, statement: str, **values: Any) -> None:
        """Change the database behind the authority's back."""
        database = open_database(self.database_url)
        execute(database, statement, **values)
        database.close()


def lose_a_table(life: Life) -> None:
    life.sql("DELETE FROM key_tables WHERE table_id = 5")


def write_batch(life: Life) -> None:
    lines = ("device_serial,device_family", "batch-1,Pi", "batch-2,Pi")
    (life.folder / "batch.csv").write_text("\n".join(lines))


def make_pictures(life: Life) -> None:
    life.sql(
        "INSERT INTO device_activity (day, device_serial, passes, pictures)"
        " VALUES (CURRENT_DATE, 'cam-1', 5000, 5000)"
    )


def give_new_secret(life: Life) -> None:
    life.environ["SMA_NEW_CA_PASSWORD"] = "another passphrase for tests alone"


def use_new_secret(life: Life) -> None:
    life.environ["CA_PASSWORD"] = life.environ.pop("SMA_NEW_CA_PASSWORD")
    previous = life.folder / "data" / "ca-password.previous"
    previous.touch(0o600)
    previous.write_text("earlier-passphrase\n")


def add_an_old_row(life: Life) -> None:
    life.sql(
        "INSERT INTO validation_history (encrypted_nuc_hash, table_id, key_index,"
        " validation_result, reason, validated_at) VALUES (:sealed, 1, 2, 'FAIL', 'not_opened',"
        " '2026-01-01 00:00:00.000000+00:00')",
        sealed=bytes(48),
    )


def go_back_a_schema(life: Life) -> None:
    """Make it the database of a program before the trail of acts."""
    for column in (
        *("request_id", "batch_position", "token_digest", "waited_us", "time_and_ip_commitment"),
    ):
        life.sql(f"ALTER TABLE validation_history DROP COLUMN {column}")
    if life.database_url.startswith("postgresql"):
        life.sql("DROP FUNCTION create_audit_partition")
    for table in ("audit_batches", "audit_checkpoints", "audit_keys"):
        life.sql(f"DROP TABLE {table}")
    for column in ("moving_to", "moving_since", "moved_at"):
        life.sql(f"ALTER TABLE authority DROP COLUMN {column}")
    life.sql("DROP TABLE administrative_acts")
    life.sql("DROP TABLE act_subjects")
    life.sql("UPDATE alembic_version SET version_num = '0013'")
    life.acts.clear()


OF_WHOLE_AUTHORITIES = {
    ActKind.AUTHORITY_RESTORE,
    ActKind.AUTHORITY_MOVE,
    ActKind.AUTHORITY_UNDO_MOVE,
}
"""Acts at the end of the life, in another database than the one before them."""
ACTIVE, OPEN = {"status": "active"}, {"state": "open"}
LIFE: tuple[Step, ...] = (
    Step("init", (), ActKind.AUTHORITY_CREATE, after={"tables": 6, "keys_per_table": 16}),
    Step(
        "migrate",
        (),
        ActKind.AUTHORITY_MIGRATE,
        before={"schema": "0013"},
        prepare=go_back_a_schema,
    ),
    Step(
        "tables populate",
        (),
        ActKind.KEY_TABLE_POPULATE,
        before={"tables": 5},
        after={"tables": 6},
        prepare=lose_a_table,
    ),
    Step(
        "provision",
        ("cam-1",),
        ActKind.DEVICE_PROVISION,
        "cam-1",
        after={"device_family": "Raspberry Pi"},
    ),
    Step(
        "provision-batch",
        ("{folder}/batch.csv", "--output", "{folder}/batch.jsonl", "--make-keys"),
        ActKind.DEVICE_PROVISION,
        subjects=2,
        prepare=write_batch,
    ),
    Step(
        "devices suspend",
        ("CAM-1",),
        ActKind.DEVICE_SUSPEND,
        "cam-1",
        ACTIVE,
        {"status": "suspended", "reason": "certificate_hold"},
        reason="certificate_hold",
    ),
    Step(
        "devices reinstate",
        ("cam-1",),
        ActKind.DEVICE_REINSTATE,
        "cam-1",
        {"status": "suspended", "reason": "certificate_hold"},
        ACTIVE,
    ),
    Step(
        "devices re-enrol",
        ("cam-1",),
        ActKind.DEVICE_ALLOW_RE_ENROLMENT,
        "cam-1",
        {"allowed": False},
        {"allowed": True},
    ),
    Step(
        "devices re-enrol",
        ("cam-1", "--cancel"),
        ActKind.DEVICE_FORBID_RE_ENROLMENT,
        "cam-1",
        {"allowed": True},
        {"allowed": False},
    ),
    Step("devices re-enrol", ("cam-1",), ActKind.DEVICE_ALLOW_RE_ENROLMENT, "cam-1"),
    Step(
        "provision",
        ("cam-1", "--output-dir", "{folder}/again"),
        ActKind.DEVICE_RE_ENROL,
        "cam-1",
        {},
        {"device_family": "Raspberry Pi"},
    ),
    Step(
        "devices revoke",
        ("batch-1", "--reason", "superseded"),
        ActKind.DEVICE_REVOKE,
        "batch-1",
        ACTIVE,
        {"status": "revoked", "reason": "superseded"},
        reason="superseded",
    ),
    Step(
        "devices retire",
        ("--family", "Pi", "--yes"),
        ActKind.DEVICE_RETIRE,
        "batch-2",
        ACTIVE,
        {"status": "retired"},
        reason="cessation_of_operation",
    ),
    Step(
        "devices flagged",
        ("--check",),
        ActKind.DEVICE_FLAG,
        "cam-1",
        after={"flag": "flag", "pictures": 5000},
        prepare=make_pictures,
    ),
    Step(
        "devices reviewed",
        ("cam-1",),
        ActKind.DEVICE_REVIEW_FLAGS,
        "cam-1",
        {"open_flags": 1},
        {"open_flags": 0},
    ),
    Step("renewals order", ("--all", "--yes"), ActKind.RENEWAL_ORDER_GIVE, "1", after=OPEN),
    Step(
        "renewals cancel", ("1",), ActKind.RENEWAL_ORDER_CANCEL, "1", OPEN, {"state": "cancelled"}
    ),
    Step(
        "keys create",
        ("desk", "--scope", "validate"),
        ActKind.ACCESS_KEY_CREATE,
        "{key}",
        after={"name": "desk", "scope": "validate"},
    ),
    Step("keys rotate", ("desk",), ActKind.ACCESS_KEY_ROTATE, "{key}", {"name": "desk"}),
    Step("keys revoke", ("desk",), ActKind.ACCESS_KEY_REVOKE, "{key}", {"name": "desk"}),
    Step(
        "tables rotate",
        ("1", "--yes"),
        ActKind.KEY_TABLE_ROTATE,
        "1",
        {"epoch": 0},
        {"epoch": 1},
    ),
    Step("tables end", ("1", "--yes"), ActKind.KEY_TABLE_END_OVERLAP, "1", {}, {}),
    Step(
        "ca rotate",
        ("--prepare-only", "--yes"),
        ActKind.CA_PREPARE,
        "intermediate-2",
        after={"role": "intermediate", "state": "prepared"},
    ),
    Step("ca rotate", ("--activate", "intermediate-2", "--yes"), ActKind.CA_ACTIVATE, subjects=2),
    Step("ca rotate", ("--yes",), ActKind.CA_ROTATE, subjects=2),
    Step("ca compromised", ("intermediate-3", "--yes"), ActKind.CA_COMPROMISE, subjects=2),
    Step("ca roll-root", ("--yes",), ActKind.CA_ROLL_ROOT, subjects=6),
    Step("ca publish-crl", (), ActKind.CA_PUBLISH_CRL, subjects=6),
    Step(
        "secrets rotate",
        (),
        ActKind.SECRET_ROTATE,
        None,
        {"kek_id": 1},
        {"kek_id": 2, "source": "passphrase"},
        prepare=give_new_secret,
    ),
    Step(
        "secrets forget-previous",
        ("--yes",),
        ActKind.SECRET_FORGET_PREVIOUS,
        None,
        {"previous_passphrases": 1},
        {"previous_passphrases": 0},
        prepare=use_new_secret,
    ),
    Step(
        "history coarsen",
        ("--older-than-days", "30", "--yes"),
        ActKind.HISTORY_COARSEN,
        prepare=add_an_old_row,
    ),
    Step(
        "history prune",
        ("--older-than-days", "30", "--yes"),
        ActKind.HISTORY_PRUNE,
        prepare=add_an_old_row,
    ),
)
REFUSED = (
    ("init",),
    ("migrate",),
    ("tables", "populate"),
    ("provision", "batch-1"),
    ("devices", "suspend", "cam-1", "--dry-run"),
    ("devices", "suspend", "cam-1", "nobody"),
    ("devices", "reinstate", "cam-1"),
    ("devices", "reviewed", "cam-1"),
    ("devices", "flagged", "--check"),
    ("devices", "re-enrol", "batch-1"),
    ("devices", "re-enrol", "cam-1", "--cancel"),
    ("renewals", "order", "--family", "nothing", "--yes"),
    ("renewals", "order", "--all", "--dry-run"),
    ("renewals", "cancel", "1"),
    ("keys", "revoke", "desk"),
    ("keys", "create", "other", "--scope", "admin", "--uses", "3"),
    ("tables", "rotate", "1", "--dry-run"),
    ("tables", "rotate", "99", "--yes"),
    ("tables", "end", "--all", "--yes"),
    ("ca", "rotate", "--dry-run"),
    ("ca", "rotate", "--activate", "intermediate", "--yes"),
    ("ca", "compromised", "intermediate-3", "--yes"),
    ("secrets", "rotate"),
    ("secrets", "forget-previous", "--yes"),
    ("history", "prune", "--older-than-days", "30", "--yes"),
    ("restore", "{folder}/backup"),
)
"""Commands that are refused, find nothing to change, or only say what they would do."""


def leaves(command: Any, path: str = "") -> Iterator[str]:
    """Return the paths of all commands below a group."""
    if not isinstance(command, TyperGroup):
        yield path
        return
    for name, each in command.commands.items():
        yield from leaves(each, f"{path} {name}".strip())


def test_every_command_is_in_a_table() -> None:
    played = {step.command for step in LIFE} | {"restore", "move"}
    assert set(leaves(get_command(app))) == played | READS.keys() | ELSEWHERE.keys()
    assert not played & READS.keys()
    assert {step.act for step in LIFE} | OF_WHOLE_AUTHORITIES == set(ActKind)


@pytest.fixture
def life(database_url: str, tmp_path: Path, postgres_binaries: Path) -> Life:
    """The life of an authority, which begins with an empty database."""
    url = None if database_url.startswith("sqlite") else database_url
    environ = server_environ(tmp_path / "data", url)
    environ |= {"CA_PASSWORD": PASSPHRASE, "SMA_TABLES": "6", "SMA_KEYS_PER_TABLE": "16"}
    environ["PATH"] = f"{postgres_binaries}:{os.environ['PATH']}"
    sqlite = f"sqlite:///{tmp_path / 'data' / 'sma.db'}"
    return Life(environ, tmp_path, url or sqlite)


def test_a_life(life: Life, postgres_admin_url: str) -> None:
    """Each change leaves one act, with what was before and after; nothing else leaves any."""
    for step in LIFE:
        step.prepare(life)
        done = life.sma(*step.command.split(), *step.arguments)
        assert done.returncode == 0, (step, done.stderr)
        assert_left(life.find_new_acts(), step)
    assert life.sma("backup", "{folder}/backup").returncode == 0
    for arguments in REFUSED:
        done = life.sma(*arguments)
        assert "Traceback" not in done.stderr, (arguments, done.stderr)
        assert life.find_new_acts() == [], arguments
    for command, given in READS.items():
        done = life.sma(*command.split(), *given)
        assert "Traceback" not in done.stderr, (command, done.stderr)
        assert life.find_new_acts() == [], command
    assert_no_secret_is_told(life)
    restored = make_empty_place(life, postgres_admin_url)
    done = restored.sma("restore", "{folder}/backup")
    assert done.returncode == 0, done.stderr
    restored.acts = life.acts
    [act] = restored.find_new_acts()
    assert (act["act"], act["subject"]) == (ActKind.AUTHORITY_RESTORE, None)
    if "DATABASE_URL" in restored.environ:
        drop_database(postgres_admin_url, "restored_life")
    else:
        assert_moves_are_acts(restored, postgres_admin_url)


def assert_moves_are_acts(life: Life, postgres_admin_url: str) -> None:
    """A move is an act in the new database; an undone one is an act in the old one."""
    drop_database(postgres_admin_url, "moved_life")
    url = create_database(postgres_admin_url, "moved_life")
    done = life.sma("move", "--to", url)
    assert done.returncode == 0, done.stderr
    moved = Life(life.environ | {"DATABASE_URL": url}, life.folder, url, life.acts)
    assert [each["act"] for each in moved.find_new_acts()] == [ActKind.AUTHORITY_MOVE]
    drop_database(postgres_admin_url, "moved_life")
    assert life.sma("move", "--undo", "--yes").returncode == 0
    assert [each["act"] for each in life.find_new_acts()] == [ActKind.AUTHORITY_UNDO_MOVE]


def assert_left(acts: Sequence[dict[str, Any]], step: Step) -> None:
    """Exactly one act, by this user, on this subject, with these states."""
    assert [each["act"] for each in acts] == [step.act], step
    [act] = acts
    assert act["source"] == "command-line"
    assert "@" in act["actor"]
    assert (act["role"], act["request_id"]) == (None, None)
    assert act["reason"] == step.reason
    assert act["subjects"] == step.subjects
    if step.subject == "{key}":
        assert len(act["subject"]) > 0
    else:
        assert act["subject"] == step.subject
    for name in ("before", "after"):
        expected = getattr(step, name)
        if expected is not None:
            found = act[name] or {}
            assert {key: found.get(key) for key in expected} == expected, step
    if step.subjects == 1 and step.before is not None:
        assert act["before"] is not None


def assert_no_secret_is_told(life: Life) -> None:
    """Threat 28: an export has no passphrase, no digest, no NUC hash and no key."""
    text = life.sma("acts", "export").stdout
    assert len(text.splitlines()) > len(LIFE)
    data = json.loads(
        (life.folder / "provisioned_devices/cam-1/provisioning_data.json").read_text()
    )
    secrets = [PASSPHRASE, life.environ["CA_PASSWORD"], data["nuc_hash"]]
    secrets += data["master_keys"].values()
    for secret in secrets:
        assert secret not in text
    for word in ("digest", "private", "sma_", "nuc_hash", "BEGIN"):
        assert word not in text


def make_empty_place(life: Life, postgres_admin_url: str) -> Life:
    """Return a place for a restore, on the same kind of database."""
    environ = life.environ | {"SMA_DATA_DIR": str(life.folder / "restored")}
    url = f"sqlite:///{life.folder / 'restored' / 'sma.db'}"
    if "DATABASE_URL" in environ:
        drop_database(postgres_admin_url, "restored_life")
        url = create_database(postgres_admin_url, "restored_life")
        environ["DATABASE_URL"] = url
    return Life(environ, life.folder, url)
