"""Whatever the database asks to be tried again is: no request goes without a verdict.

PostgreSQL's strictest isolation and a connection pooler stand for databases that cannot be
installed here, and that ask for it much more often.
"""

import logging
import secrets
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import pytest
from sqlalchemy import Connection, event, text

from birthmark_sma.authority.access.caller import Caller
from birthmark_sma.authority.acts import trail
from birthmark_sma.authority.acts.actor import ActKind
from birthmark_sma.authority.acts.trail import Subject
from birthmark_sma.authority.audit_chain import checkpoints, keys
from birthmark_sma.authority.authority import Authority
from birthmark_sma.config import Settings
from birthmark_sma.errors import BirthmarkError, DeviceAlreadyProvisionedError
from birthmark_sma.protocol.verdict import Verdict
from birthmark_sma.storage.engine import open_database
from birthmark_sma.storage.outages import deadlines
from tests.support.authorities import (
    camera_of,
    count_activity,
    execute,
    new_authority,
    opened,
    request_for,
    rows_of,
    small_settings,
)
from tests.support.cameras.camera import new_key
from tests.support.cameras.renewed import new_device, renew
from tests.support.cameras.table_epochs import rotate
from tests.support.counting import (
    assert_counters_are_those_of_the_trail,
    assert_the_chains_verify,
)
from tests.support.databases.pgbouncer import PgBouncer
from tests.support.devices.actors import ACTOR
from tests.support.devices.acts import allow_re_enrolment, reinstate_device, suspend_device

PROCESSES = 3
CAMERAS = 8
TOKENS = 4_000  # in all
CHANGES = 40
RENEWALS = 8
REPEATED = 400  # of these: the same tokens, for every process


@pytest.fixture(params=["REPEATABLE READ", "SERIALIZABLE"])
def isolation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run every transaction of this test at a level at which PostgreSQL makes them fail."""
    level: str = request.param
    monkeypatch.setattr(deadlines, "ISOLATION", level)
    return level


def opened_by_several(settings: Settings, stack: ExitStack) -> list[Authority]:
    """Open an authority several times, as several processes do."""
    first = stack.enter_context(new_authority(settings))
    return [first, *(stack.enter_context(opened(settings)) for _ in range(PROCESSES - 1))]


def in_parallel(*calls: Callable[[], object]) -> None:
    """Run calls in threads, and raise the first error of one of them."""
    with ThreadPoolExecutor(len(calls)) as threads:
        for running in [threads.submit(call) for call in calls]:
            running.result(240)


def count_failures(authorities: list[Authority]) -> Counter[str]:
    """Count by SQLSTATE what PostgreSQL asks to be tried again, from now on."""
    counted: Counter[str] = Counter()

    def count(context: object) -> None:
        state = getattr(getattr(context, "original_exception", None), "sqlstate", None)
        counted[str(state)] += 1

    for authority in authorities:
        event.listen(authority.database.engine, "handle_error", count)
    return counted


def renew_and_re_enrol(authority: Authority) -> None:
    """Renew one device and re-enrol it, again and again, and rotate the key tables meanwhile.

    Assert that it has one valid certificate in the end, and that all earlier ones are superseded.
    """
    device = new_device(authority, "renewing-camera")
    for number in range(RENEWALS):
        key = new_key()
        renewed = renew(authority, device.request(key=key, supersede=True))
        device = replace(device, key=key, certificate=renewed.device_certificate)
        allow_re_enrolment(authority.database, device.serial)
        device = new_device(authority, device.serial)
        if number == RENEWALS // 2:
            rotate(authority)
    current = "SELECT certificate_serial FROM registered_devices WHERE device_serial = :serial"
    earlier = "SELECT certificate_serial FROM earlier_certificates WHERE device_serial = :serial"
    revoked = (
        "SELECT certificate_serial, revocation_reason FROM revoked_certificates"
        " WHERE device_serial = :serial"
    )
    assert rows_of(authority.database, current, serial=device.serial) == [
        (device.certificate_serial,)
    ]
    replaced = {each for (each,) in rows_of(authority.database, earlier, serial=device.serial)}
    assert len(replaced) == 2 * RENEWALS
    rows = [tuple(row) for row in rows_of(authority.database, revoked, serial=device.serial)]
    assert sorted(rows) == sorted((each, "superseded") for each in replaced)


def provision_and_validate(authorities: list[Authority]) -> None:
    """Provision the same devices everywhere, validate 4,000 tokens, change devices meanwhile.

    Other devices are suspended, renewed and re-enrolled, and all key tables rotated. Assert that
    each request has its result, and that nothing is recorded twice or not at all.
    """
    serials = [f"camera-{number}" for number in range(CAMERAS)]
    provisioned = {}
    refused: list[BirthmarkError] = []

    def provision(authority: Authority) -> None:
        for serial in serials:
            try:
                provisioned[serial] = authority.provisioner.provision_device(request_for(serial))
            except BirthmarkError as error:
                refused.append(error)

    in_parallel(*(partial(provision, each) for each in authorities))
    assert sorted(provisioned) == serials
    assert len(refused) == (PROCESSES - 1) * CAMERAS
    assert {type(error) for error in refused} == {DeviceAlreadyProvisionedError}

    cameras = [camera_of(serial, answer) for serial, answer in provisioned.items()]
    repeated = [cameras[at % CAMERAS].token() for at in range(REPEATED)]
    own = (TOKENS - PROCESSES * REPEATED) // PROCESSES
    verdicts: Counter[Verdict] = Counter()

    def validate(authority: Authority, number: int) -> None:
        caller = Caller(f"192.0.2.{number}")
        tokens = [*repeated, *(cameras[at % CAMERAS].token() for at in range(own))]
        secrets.SystemRandom().shuffle(tokens)
        waiting = [authority.validator.submit(token, caller) for token in tokens]
        verdicts.update(each.result(200).verdict for each in waiting)

    def change_devices(authority: Authority) -> None:
        for _ in range(CHANGES):
            suspend_device(authority.database, "another-camera")
            reinstate_device(authority.database, "another-camera")

    authorities[0].provisioner.provision_device(request_for("another-camera"))
    in_parallel(
        partial(change_devices, authorities[0]),
        partial(renew_and_re_enrol, authorities[1]),
        *(partial(validate, each, at) for at, each in enumerate(authorities)),
    )
    asked = PROCESSES * (REPEATED + own)
    assert verdicts == {Verdict.PASS: asked}
    count_activity(*authorities)
    assert assert_counters_are_those_of_the_trail(authorities[0].database) == asked
    assert_the_chains_verify(authorities[0].database)
    ledger = rows_of(authorities[0].database, "SELECT count(*) FROM sighted_tokens")
    assert ledger == [(REPEATED + PROCESSES * own,)]


def test_no_isolation_level_leaves_a_request_without_its_result(
    postgres_url: str, tmp_path: Path, isolation: str
) -> None:
    """Threat 48: conflicts are tried again, in the statements and at the commit."""
    with ExitStack() as stack:
        settings = small_settings(tmp_path, postgres_url, batch_limit=50)
        authorities = opened_by_several(settings, stack)
        level = rows_of(authorities[0].database, "SHOW transaction_isolation")
        assert level == [(isolation.lower(),)]
        counted = count_failures(authorities)
        provision_and_validate(authorities)
        assert counted["40001"] > 10, "nothing was to be tried again: this test shows nothing"


def test_a_conflict_that_comes_with_the_commit(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two transactions each read what the other one writes: one is done again."""
    monkeypatch.setattr(deadlines, "ISOLATION", "SERIALIZABLE")
    with closing(open_database(postgres_url)) as database:
        execute(database, "CREATE TABLE noted (number integer)")
        attempts = []
        both_read = threading.Barrier(2, timeout=30)

        def work(name: str) -> None:
            def count_and_add(transaction: Connection) -> None:
                attempts.append(name)
                count = transaction.execute(text("SELECT count(*) FROM noted")).scalar_one()
                if len(attempts) <= 2:
                    both_read.wait()
                transaction.execute(text("INSERT INTO noted VALUES (:n)"), {"n": count})
                if len(attempts) <= 2:
                    both_read.wait()

            database.transact(count_and_add)

        in_parallel(partial(work, "a"), partial(work, "b"))
        assert len(attempts) == 3
        assert rows_of(database, "SELECT number FROM noted ORDER BY number") == [(0,), (1,)]


# --- behind a connection pooler


@pytest.fixture
def pooler(postgres_url: str) -> Iterator[PgBouncer]:
    """Stand between the database of this test and its clients, in transaction mode."""
    with PgBouncer(postgres_url) as pooler:
        yield pooler


def test_no_request_fails_behind_a_pooler(
    pooler: PgBouncer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Threat 48: each transaction gets another connection, where statements are prepared or not.

    The driver notices that and prepares no more.
    """
    caplog.set_level(logging.WARNING)
    with ExitStack() as stack:
        settings = small_settings(tmp_path, pooler.url, batch_limit=50)
        authorities = opened_by_several(settings, stack)
        counted = count_failures(authorities)
        provision_and_validate(authorities)
        assert counted["26000"] + counted["42P05"] >= 1, "this pooler kept prepared statements"
        assert counted["26000"] + counted["42P05"] <= 2 * PROCESSES
        told = [each for each in caplog.messages if "connection pooler" in each]
        assert 1 <= len(told) <= PROCESSES


def test_acts_and_checkpoints_at_one_time(
    postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each follows the last one. A snapshot from before another one's commit is not the end."""
    monkeypatch.setattr(deadlines, "ISOLATION", "REPEATABLE READ")
    subject = Subject("camera", None, {"state": "suspended"})
    with new_authority(small_settings(tmp_path, postgres_url)) as authority:
        database, keks = authority.database, authority.secrets.keks
        with database.write() as transaction:
            keys.create_key(transaction, keks, datetime.now(UTC))
        for work in (
            lambda transaction: trail.record(transaction, ACTOR, ActKind.DEVICE_SUSPEND, [subject]),
            lambda transaction: checkpoints.make_checkpoint(transaction, keks),
        ):
            attempts: list[str] = []

            def be_overtaken(
                transaction: Connection,
                work: Callable[[Connection], object] = work,
                attempts: list[str] = attempts,
            ) -> None:
                transaction.execute(text("SELECT count(*) FROM audit_checkpoints"))
                attempts.append("begun")
                if len(attempts) == 1:
                    database.transact(work)
                work(transaction)

            database.transact(be_overtaken)
            assert len(attempts) == 2
        assert_the_chains_verify(database)
