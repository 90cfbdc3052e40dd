"""Validation against a real database: the truth table, the audit trail, and what nobody learns."""

import asyncio
import secrets
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event, select

from birthmark_sma.authority.access.caller import Caller
from birthmark_sma.authority.access.store import AccessKey, KeyScope
from birthmark_sma.authority.authority import Authority
from birthmark_sma.authority.validation.records import Validation
from birthmark_sma.config import ReplayPolicy, Settings
from birthmark_sma.errors import DatabaseUnavailableError, PoolFullError, ShuttingDownError
from birthmark_sma.protocol import camera_token, key_derivation
from birthmark_sma.protocol.camera_token import CameraToken
from birthmark_sma.protocol.key_table import MAX_WIRE_INTEGER
from birthmark_sma.protocol.replay import Repeat
from birthmark_sma.protocol.verdict import Reason, Verdict
from birthmark_sma.storage.schema.validations import validation_history
from tests.support.authorities import (
    KEYS_PER_TABLE,
    TABLES,
    counted_statements,
    execute,
    new_authority,
    new_camera,
    opened,
    rows_of,
    small_settings,
    writers_held_up,
)
from tests.support.cameras.camera import Camera
from tests.support.counting import assert_the_ledger_agrees_with_the_trail
from tests.support.databases.postgres import Postgres
from tests.support.devices.acts import (
    reinstate_device,
    retire_device,
    revoke_device,
    suspend_device,
)
from tests.support.http.contexts import Asked

CALLER = Caller("192.0.2.7")


def validate(
    authority: Authority, *tokens: CameraToken, caller: Caller = CALLER
) -> list[Validation]:
    """Validate tokens, all handed in before the first is waited for."""
    futures = [authority.validator.submit(token, caller) for token in tokens]
    return [future.result(30) for future in futures]


def audit_trail(authority: Authority) -> list[Any]:
    """Return every row of the audit trail, oldest first."""
    with authority.database.read() as connection:
        query = select(validation_history).order_by(validation_history.c.id)
        return list(connection.execute(query))


@dataclass
class Scene:
    """An authority with a camera of each status, and tables to choose from."""

    authority: Authority
    camera: Camera
    suspended: Camera
    revoked: Camera
    retired: Camera

    @classmethod
    def of(cls, authority: Authority) -> "Scene":
        """Set the scene."""
        scene = cls(
            authority,
            new_camera(authority, "active"),
            new_camera(authority, "suspended"),
            new_camera(authority, "revoked"),
            new_camera(authority, "retired"),
        )
        suspend_device(authority.database, "suspended")
        revoke_device(authority.database, "revoked", "key_compromise")
        retire_device(authority.database, "retired")
        return scene

    def foreign_table(self, camera: Camera) -> int:
        """Return a table that is not the camera's."""
        return next(table for table in range(TABLES) if table not in camera.table_keys)

    def token_on_foreign_table(self, camera: Camera) -> CameraToken:
        """Return a token of a camera that somebody sealed under another device's table."""
        table_id = self.foreign_table(camera)
        key = self.authority.table_cache.keys.current[table_id].master_key
        return camera.token(table_id, master_key=key)


def sealed(nuc_hash: bytes, key: bytes, table_id: int, key_index: int) -> CameraToken:
    """Seal whatever under whatever key."""
    return camera_token.seal(
        nuc_hash,
        key=key_derivation.derive_key(key, key_index),
        table_id=table_id,
        key_index=key_index,
        nonce=secrets.token_bytes(12),
    )


def altered(token: CameraToken, position: int) -> CameraToken:
    """Flip a bit of ciphertext or tag."""
    text = bytearray(token.encrypted_nuc_hash)
    text[position] ^= 1
    return replace(token, encrypted_nuc_hash=bytes(text))


Forgery = Callable[[Scene], CameraToken]

TRUTH_TABLE: dict[str, tuple[Forgery, Reason, str | None]] = {
    "genuine": (lambda s: s.camera.token(), Reason.GENUINE, "active"),
    "genuine, on each of its tables": (
        lambda s: s.camera.token(max(s.camera.table_keys)),
        Reason.GENUINE,
        "active",
    ),
    "genuine, first key": (lambda s: s.camera.token(key_index=0), Reason.GENUINE, "active"),
    "genuine, last key": (
        lambda s: s.camera.token(key_index=KEYS_PER_TABLE - 1),
        Reason.GENUINE,
        "active",
    ),
    "altered tag": (lambda s: altered(s.camera.token(), 47), Reason.NOT_OPENED, None),
    "altered ciphertext": (lambda s: altered(s.camera.token(), 0), Reason.NOT_OPENED, None),
    "altered nonce": (
        lambda s: replace(s.camera.token(), nonce=secrets.token_bytes(12)),
        Reason.NOT_OPENED,
        None,
    ),
    "nothing but zeros": (
        lambda _: CameraToken(bytes(48), 0, 0, bytes(12)),
        Reason.NOT_OPENED,
        None,
    ),
    "other key index": (
        lambda s: replace(s.camera.token(key_index=7), key_index=8),
        Reason.NOT_OPENED,
        None,
    ),
    "other table of its own": (
        lambda s: replace(
            s.camera.token(min(s.camera.table_keys)), table_id=max(s.camera.table_keys)
        ),
        Reason.NOT_OPENED,
        None,
    ),
    "master key in place of the derived one": (
        lambda s: camera_token.seal(
            s.camera.nuc_hash,
            key=s.camera.table_keys[min(s.camera.table_keys)],
            table_id=min(s.camera.table_keys),
            key_index=7,
            nonce=secrets.token_bytes(12),
        ),
        Reason.NOT_OPENED,
        None,
    ),
    "unknown table": (
        lambda s: replace(s.camera.token(), table_id=TABLES),
        Reason.UNKNOWN_TABLE,
        None,
    ),
    "last table of the wire": (
        lambda s: replace(s.camera.token(), table_id=MAX_WIRE_INTEGER),
        Reason.UNKNOWN_TABLE,
        None,
    ),
    "key index beyond": (
        lambda s: replace(s.camera.token(), key_index=KEYS_PER_TABLE),
        Reason.UNKNOWN_KEY_INDEX,
        None,
    ),
    # Threat 14: a key for this index can be derived, and the token opens under it.
    "sealed with a key index beyond": (
        lambda s: s.camera.token(key_index=123_456),
        Reason.UNKNOWN_KEY_INDEX,
        None,
    ),
    "both unknown": (
        lambda s: replace(s.camera.token(), table_id=TABLES, key_index=KEYS_PER_TABLE),
        Reason.UNKNOWN_TABLE,
        None,
    ),
    "foreign table": (
        lambda s: s.token_on_foreign_table(s.camera),
        Reason.TABLE_NOT_ASSIGNED,
        "active",
    ),
    "suspended on a foreign table": (
        lambda s: s.token_on_foreign_table(s.suspended),
        Reason.TABLE_NOT_ASSIGNED,
        "suspended",
    ),
    "unknown device": (
        lambda s: s.camera.token(nuc_hash=secrets.token_bytes(32)),
        Reason.UNKNOWN_DEVICE,
        None,
    ),
    "what the database holds in place of the NUC hash": (
        lambda s: s.camera.token(
            nuc_hash=bytes(
                rows_of(
                    s.authority.database,
                    "SELECT nuc_hash FROM registered_devices WHERE device_serial = 'active'",
                )[0][0]
            )
        ),
        Reason.UNKNOWN_DEVICE,
        None,
    ),
    "suspended": (lambda s: s.suspended.token(), Reason.DEVICE_SUSPENDED, "suspended"),
    "revoked": (lambda s: s.revoked.token(), Reason.DEVICE_REVOKED, "revoked"),
    "retired": (lambda s: s.retired.token(), Reason.DEVICE_RETIRED, "retired"),
}


@pytest.fixture
def scene(authority: Authority) -> Scene:
    """An authority with cameras."""
    return Scene.of(authority)


# --- the truth table


def test_the_truth_table(scene: Scene) -> None:
    """Threats 6, 14 and 15: every kind of token gets its reason, one by one.

    And each has one row in the audit trail, with that reason, before it is answered.
    """
    for name, (forge, reason, device_serial) in TRUTH_TABLE.items():
        token = forge(scene)
        rows_before = len(audit_trail(scene.authority))
        (validation,) = validate(scene.authority, token)
        rows = audit_trail(scene.authority)
        assert validation.reason is reason, name
        assert validation.verdict is (Verdict.PASS if reason is Reason.GENUINE else Verdict.FAIL)
        assert validation.device_serial == device_serial, name
        assert len(rows) == rows_before + 1, name
        row = rows[-1]
        assert (row.validation_result, row.reason) == (validation.verdict.value, reason.value)
        assert (row.table_id, row.key_index) == (token.table_id, token.key_index)
        assert row.encrypted_nuc_hash == token.encrypted_nuc_hash
        assert row.device_serial == device_serial, name
        assert row.request_ip == "192.0.2.7"
        assert row.validated_at == validation.validated_at


def test_every_reason_is_in_the_truth_table() -> None:
    """A new reason wants a row above.

    Those that need a history are in test_one_derivation and test_epochs.
    """
    reasons = {reason for _, reason, _ in TRUTH_TABLE.values()}
    assert reasons == set(Reason) - {
        Reason.OTHER_DERIVATION,
        Reason.OPENED_TWICE,
        Reason.OTHER_EPOCH,
        Reason.EARLIER_EPOCH,
    }


def test_a_batch_of_everything(scene: Scene, database_url: str) -> None:
    """One bad token never spoils the others: in one batch, the same reasons in the same order."""
    tokens = [forge(scene) for forge, _, _ in TRUTH_TABLE.values()]
    expected = [reason for _, reason, _ in TRUTH_TABLE.values()]
    validations = validate_in_one_batch(scene.authority, database_url, tokens)
    assert [validation.reason for validation in validations] == expected
    rows = audit_trail(scene.authority)[-len(tokens) :]
    assert [row.reason for row in rows] == [reason.value for reason in expected]
    assert len({row.validated_at for row in rows}) == 1


def validate_in_one_batch(
    authority: Authority, database_url: str, tokens: Sequence[CameraToken]
) -> list[Validation]:
    """Let tokens gather while the writer waits for the database with a token of its own."""
    with writers_held_up(database_url):
        first = authority.validator.submit(tokens[0], Caller("first"))
        while authority.validator.waiting:
            threading.Event().wait(0.002)
        futures = [authority.validator.submit(token, CALLER) for token in tokens]
        assert authority.validator.waiting == len(tokens)
        assert not first.done()
    first.result(30)
    return [future.result(30) for future in futures]


def test_two_devices_on_one_table(scene: Scene) -> None:
    """Threat 14: the NUC hash decides whose token it is, not the table."""
    others = [new_camera(scene.authority, f"other-{number}") for number in range(8)]
    # Nine cameras with three of six tables each: some table is that of several.
    cameras = (scene.camera, *others)
    shared, _ = Counter(each for camera in cameras for each in camera.table_keys).most_common(1)[0]
    sharing = [camera for camera in cameras if shared in camera.table_keys]
    assert len(sharing) > 1
    validations = validate(scene.authority, *(camera.token(shared) for camera in sharing))
    assert [each.device_serial for each in validations] == [camera.serial for camera in sharing]
    assert {each.reason for each in validations} == {Reason.GENUINE}


def test_the_family_is_told_with_the_serial(scene: Scene) -> None:
    """Both or neither, by the device that is known."""
    genuine, unknown = validate(
        scene.authority, scene.camera.token(), CameraToken(bytes(48), 0, 0, bytes(12))
    )
    assert (genuine.device_serial, genuine.device_family) == ("active", "Test")
    assert (unknown.device_serial, unknown.device_family) == (None, None)


# --- twice, and from elsewhere


def test_dual_submission(scene: Scene, settings: Settings) -> None:
    """Threat 17: one token from two aggregators, at two programs, gets one answer, and two rows."""
    token = scene.camera.token()
    first, again = validate(scene.authority, token), validate(scene.authority, token)
    with opened(settings) as other:
        elsewhere = validate(other, token, caller=Caller("198.51.100.9"))
    answers = {(each.verdict, each.device_serial) for each in (*first, *again, *elsewhere)}
    assert answers == {(Verdict.PASS, "active")}
    rows = audit_trail(scene.authority)
    assert [row.request_ip for row in rows] == ["192.0.2.7"] * 2 + ["198.51.100.9"]
    assert [row.repeat for row in rows] == [None, "replayed", "dual_submission"]
    assert [each.repeat for each in (*first, *again, *elsewhere)] == [
        None,
        Repeat.REPLAYED,
        Repeat.DUAL_SUBMISSION,
    ]
    assert_the_ledger_agrees_with_the_trail(scene.authority.database)


def test_both_copies_in_one_batch(scene: Scene, database_url: str) -> None:
    """Threat 17: also where they meet."""
    token = scene.camera.token()
    validations = validate_in_one_batch(scene.authority, database_url, [token] * 5)
    assert [validation.reason for validation in validations] == [Reason.GENUINE] * 5
    rows = audit_trail(scene.authority)
    assert [row.repeat for row in rows] == [None, "dual_submission", *["replayed"] * 4]
    assert_the_ledger_agrees_with_the_trail(scene.authority.database)


def test_every_kind_of_token_is_noted(scene: Scene) -> None:
    """Threats 17 and 18: a FAIL that comes again is a repeat as well, at the same cost."""
    costs = set()
    for name, (forge, reason, _) in TRUTH_TABLE.items():
        token = forge(scene)
        validate(scene.authority, token)
        with counted_statements(scene.authority.database) as statements:
            (again,) = validate(scene.authority, token)
        assert (again.reason, again.repeat) == (reason, Repeat.REPLAYED), name
        if reason.verdict is Verdict.FAIL:
            costs.add(tuple(statements))
    assert len(costs) == 1
    assert_the_ledger_agrees_with_the_trail(scene.authority.database)


def access_key(name: str) -> AccessKey:
    """Return a key that a caller could have shown."""
    return AccessKey(secrets.token_hex(8), name, KeyScope.VALIDATE, datetime.now(UTC))


def test_a_caller_with_a_key_is_its_key(scene: Scene) -> None:
    """Threat 17: one key from two addresses is one caller; two keys behind one proxy are two."""
    token = scene.camera.token()
    one, other = access_key("one"), access_key("other")
    callers = [
        Caller("192.0.2.7", one),
        Caller("198.51.100.9", one),
        Caller("192.0.2.7", other),
        Caller("192.0.2.7"),
        Caller("192.0.2.7", other),
    ]
    for caller in callers:
        validate(scene.authority, token, caller=caller)
    rows = audit_trail(scene.authority)
    assert [(row.caller, row.repeat) for row in rows] == [
        (one.key_id, None),
        (one.key_id, "replayed"),
        (other.key_id, "dual_submission"),
        (None, "dual_submission"),
        (other.key_id, "replayed"),
    ]


def test_a_token_altered_in_any_part_is_another(scene: Scene) -> None:
    """Nobody makes a genuine token look replayed with one that only resembles it."""
    token = scene.camera.token()
    tokens = [
        replace(token, encrypted_nuc_hash=bytes(48)),
        replace(token, nonce=bytes(12)),
        replace(token, table_id=token.table_id + 1),
        replace(token, key_index=token.key_index + 1),
        token,
    ]
    assert [each.repeat for each in validate(scene.authority, *tokens)] == [None] * 5


def test_another_program_knows_at_once(scene: Scene, settings: Settings) -> None:
    """Threat 6: no cache of devices: a change by one program counts in the next answer of any."""
    with opened(settings) as other:
        assert validate(other, scene.camera.token())[0].reason is Reason.GENUINE
        suspend_device(scene.authority.database, "active")
        assert validate(other, scene.camera.token())[0].reason is Reason.DEVICE_SUSPENDED
        reinstate_device(scene.authority.database, "active")
        assert validate(other, scene.camera.token())[0].reason is Reason.GENUINE
        revoke_device(scene.authority.database, "active", "superseded")
        assert validate(other, scene.camera.token())[0].reason is Reason.DEVICE_REVOKED
        fresh = new_camera(scene.authority, "fresh")
        assert validate(other, fresh.token())[0].reason is Reason.GENUINE


# --- verdicts that nobody got, where no caller shall have one twice


@pytest.fixture
def refusing(scene: Scene, settings: Settings) -> Iterator[Authority]:
    """The same authority, as a server opens it that refuses repeats."""
    with opened(settings.model_copy(update={"replay": ReplayPolicy.REFUSE_SAME_CALLER})) as other:
        yield other


def test_a_lost_answer_is_known_by_the_table_that_opened_the_token(
    scene: Scene, refusing: Authority
) -> None:
    """A published camera names three tables: the repeat and the lost answer mean the same one."""
    token = scene.camera.token()
    decoy = replace(token, key_index=(token.key_index + 1) % KEYS_PER_TABLE)

    async def bring() -> tuple[Validation, Asked]:
        request = Asked()
        offered = refusing.validator.submit_async(decoy, CALLER, request, alternatives=[token])
        return await offered, request

    async def lose() -> None:
        _, request = await bring()
        request.leave()

    asyncio.run(lose())
    again, _ = asyncio.run(bring())
    assert (again.reason, again.repeat) == (Reason.GENUINE, Repeat.REPLAYED)
    assert again.answer_was_lost
    assert not asyncio.run(bring())[0].answer_was_lost


def test_an_answer_that_was_lost_is_given_once(scene: Scene, refusing: Authority) -> None:
    """Each that was lost, also within a batch, and to its caller alone; then none any more."""
    token, another = scene.camera.token(), scene.camera.token()

    async def lose() -> None:
        for each in (token, token, another):
            request = Asked()
            await refusing.validator.submit_async(each, CALLER, request)
            request.leave()

    asyncio.run(lose())
    other = Caller("192.0.2.8")
    assert [each.answer_was_lost for each in validate(refusing, token, caller=other)] == [False]
    again = validate(refusing, token, token, another)
    assert [each.repeat for each in again] == [Repeat.REPLAYED] * 3
    assert sorted(each.answer_was_lost for each in again) == [False, True, True]
    assert not any(each.answer_was_lost for each in validate(refusing, token, another))
    assert rows_of(refusing.database, "SELECT count(*) FROM lost_answers") == [(0,)]


def test_a_repeat_is_in_doubt_where_the_transaction_waited(
    scene: Scene, refusing: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process that it waited for may be about to note that its caller left."""
    token = scene.camera.token()
    assert not validate(refusing, token)[0].in_doubt
    assert not validate(refusing, token)[0].in_doubt
    monkeypatch.setattr(
        "birthmark_sma.authority.validation.replay_ledger._DOUBTFUL_NANOSECONDS", -1
    )
    assert validate(refusing, token)[0].in_doubt
    assert not validate(refusing, scene.camera.token())[0].in_doubt


# --- the audit trail


def test_the_row_is_there_before_the_answer(scene: Scene) -> None:
    """Threats 15 and 30: whoever holds an answer finds its row, from any connection."""
    for number in range(20):
        validate(scene.authority, scene.camera.token())
        query = "SELECT count(*) FROM validation_history"
        assert rows_of(scene.authority.database, query) == [(number + 1,)]


def test_no_row_no_answer(scene: Scene) -> None:
    """Threat 19: where the row cannot be written, there is an outage and neither PASS nor FAIL."""
    tokens = [forge(scene) for forge, _, _ in TRUTH_TABLE.values()]
    execute(scene.authority.database, "ALTER TABLE validation_history RENAME TO elsewhere")
    for token in tokens:
        with pytest.raises(DatabaseUnavailableError, match="lacks a table"):
            validate(scene.authority, token)
    execute(scene.authority.database, "ALTER TABLE elsewhere RENAME TO validation_history")
    assert audit_trail(scene.authority) == []
    assert validate(scene.authority, scene.camera.token())[0].verdict is Verdict.PASS


def test_the_trail_holds_no_token_to_replay(scene: Scene) -> None:
    """Threat 28: neither nonce nor NUC hash is in any column."""
    token = scene.camera.token()
    validate(scene.authority, token)
    values = [value for row in audit_trail(scene.authority) for value in row]
    for secret in (token.nonce, scene.camera.nuc_hash):
        assert all(secret not in value for value in values if isinstance(value, bytes))
        assert secret.hex() not in repr(values)


def test_times_have_their_zone(scene: Scene) -> None:
    """Threat 25: answer and row have the time of the verdict, in UTC."""
    clock = scene.authority.database.clock
    before = clock.now()
    (validation,) = validate(scene.authority, scene.camera.token())
    assert before <= validation.validated_at <= clock.now()
    assert validation.validated_at.utcoffset() == timedelta(0)
    assert audit_trail(scene.authority)[0].validated_at == validation.validated_at


@pytest.mark.parametrize("address", [None, "::1", "2001:db8::ffff:ffff:255.255.255.255"])
def test_whoever_asks_is_recorded(scene: Scene, address: str | None) -> None:
    """The command line has no address."""
    validate(scene.authority, scene.camera.token(), caller=Caller(address))
    assert audit_trail(scene.authority)[0].request_ip == address


# --- what nobody learns


def test_every_fail_costs_the_same_statements(scene: Scene) -> None:
    """Threat 18: the database does the same for each kind of FAIL, and for a PASS."""
    costs: dict[str, list[str]] = {}
    first, _, _ = TRUTH_TABLE["genuine"]
    validate(scene.authority, first(scene))  # reserves the ids of the others
    for name, (forge, _, _) in TRUTH_TABLE.items():
        token = forge(scene)
        with counted_statements(scene.authority.database) as statements:
            validate(scene.authority, token)
            costs[name] = list(statements)
    failed = {
        name: costs[name]
        for name, (_, reason, _) in TRUTH_TABLE.items()
        if reason.verdict is Verdict.FAIL
    }
    assert len({tuple(each) for each in failed.values()}) == 1, failed
    statements = [each for each in costs["unknown table"] if not each.startswith("BEGIN")]
    assert len(statements) == (4 if scene.authority.database.dialect_name == "postgresql" else 6)
    assert set(costs["unknown table"]) == set(costs["genuine"])


def test_statements_do_not_grow_with_the_batch(scene: Scene, database_url: str) -> None:
    """One question for all devices, and one commit."""
    commits = []

    def note(_: Any) -> None:
        commits.append(1)

    tokens = [scene.camera.token() for _ in range(50)]
    event.listen(scene.authority.database.engine, "commit", note)
    with counted_statements(scene.authority.database) as statements:
        validate_in_one_batch(scene.authority, database_url, tokens)
    event.remove(scene.authority.database.engine, "commit", note)
    assert len(commits) == 2
    assert sum("registered_devices" in statement for statement in statements) == 2


# --- coroutines, limits, the end


def test_coroutines(scene: Scene) -> None:
    """Many at once on one event loop, each with its own answer."""
    tokens = [forge(scene) for forge, _, _ in TRUTH_TABLE.values()] * 3
    expected = [reason for _, reason, _ in TRUTH_TABLE.values()] * 3

    async def scenario() -> list[Validation]:
        validator = scene.authority.validator
        return await asyncio.gather(*(validator.validate(token, CALLER) for token in tokens))

    assert [validation.reason for validation in asyncio.run(scenario())] == expected
    assert len(audit_trail(scene.authority)) == len(tokens)


def test_a_full_pool(tmp_path: Path, database_url: str) -> None:
    """Threat 19: whoever is turned away hears that, and has no row; nobody gets a FAIL for it."""
    settings = small_settings(tmp_path, database_url, pool_limit=8)
    with new_authority(settings) as authority:
        camera = new_camera(authority, "camera")
        with writers_held_up(database_url):
            futures = [authority.validator.submit(camera.token(), CALLER)]
            while authority.validator.waiting:
                threading.Event().wait(0.002)
            futures += [authority.validator.submit(camera.token(), CALLER) for _ in range(4)]
            with pytest.raises(PoolFullError):
                authority.validator.submit(camera.token(), CALLER)
            # The other half is for other callers.
            futures.append(authority.validator.submit(camera.token(), Caller("192.0.2.8")))
        assert {future.result(30).verdict for future in futures} == {Verdict.PASS}
        assert len(audit_trail(authority)) == 6


def test_closing_answers_what_waits(scene: Scene, database_url: str) -> None:
    """Threat 31: tokens that were accepted are judged and recorded before the end."""
    validator = scene.authority.validator
    with writers_held_up(database_url):
        futures = [validator.submit(scene.camera.token(), CALLER) for _ in range(20)]
        closing = threading.Thread(target=validator.close)
        closing.start()
        while validator.writer.running:
            threading.Event().wait(0.002)
        with pytest.raises(ShuttingDownError):
            validator.submit(scene.camera.token(), CALLER)
    closing.join(30)
    assert {future.result(0).verdict for future in futures} == {Verdict.PASS}
    assert len(audit_trail(scene.authority)) == 20


# --- when the database is away


def test_an_outage_is_never_a_fail(tmp_path: Path, own_postgres: Postgres) -> None:
    """Threat 19: while PostgreSQL is away every kind of token is an outage; then all is as before.

    A device revoked before the outage is revoked after it, and nothing needs a restart.
    """
    with new_authority(small_settings(tmp_path, own_postgres.url)) as authority:
        scene = Scene.of(authority)
        tokens = [forge(scene) for forge, _, _ in TRUTH_TABLE.values()]
        expected = [reason for _, reason, _ in TRUTH_TABLE.values()]
        assert [each.reason for each in validate(authority, *tokens)] == expected
        own_postgres.kill()
        futures = [authority.validator.submit(token, CALLER) for token in tokens]
        for future in futures:
            assert isinstance(future.exception(30), DatabaseUnavailableError)
        own_postgres.restart()
        assert [each.reason for each in validate(authority, *tokens)] == expected
        assert len(audit_trail(authority)) == 2 * len(tokens)


def test_a_full_disk_is_never_a_fail(tmp_path: Path) -> None:
    """Threat 19: SQLite without room for the audit row is an outage, and recovers by itself."""
    settings = small_settings(tmp_path, None)
    with new_authority(settings) as authority:
        camera = new_camera(authority, "camera")
        limit = [1]

        def no_room(connection: Any) -> None:
            connection.exec_driver_sql(f"PRAGMA max_page_count = {limit[0]}")

        event.listen(authority.database.engine, "begin", no_room)
        outages = 0
        for _ in range(200):  # until the last page is full
            try:
                assert validate(authority, camera.token())[0].verdict is Verdict.PASS
            except DatabaseUnavailableError:
                outages += 1
                if outages == 3:
                    break
        assert outages == 3
        recorded = len(audit_trail(authority))
        limit[0] = 1_000_000
        assert validate(authority, camera.token())[0].verdict is Verdict.PASS
        event.remove(authority.database.engine, "begin", no_room)
        assert len(audit_trail(authority)) == recorded + 1
