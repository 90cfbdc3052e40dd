"""A COMMIT without an answer: callers get their results, and nothing is recorded twice."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future

import pytest

from birthmark_sma.authority.access.caller import Caller
from birthmark_sma.authority.authority import Authority
from birthmark_sma.authority.validation.records import Validation
from birthmark_sma.errors import DeviceAlreadyProvisionedError
from birthmark_sma.protocol.camera_token import CameraToken
from birthmark_sma.protocol.replay import Repeat
from birthmark_sma.protocol.verdict import Verdict
from birthmark_sma.runtime.submission import Answers
from birthmark_sma.storage import group_commit
from birthmark_sma.storage.outages import deadlines, retries, writer_commits
from tests.support.authorities import (
    count_activity,
    new_authority,
    new_camera,
    request_for,
    rows_of,
    small_settings,
)
from tests.support.counting import (
    assert_counters_are_those_of_the_trail,
    assert_the_chains_verify,
    assert_the_ledger_agrees_with_the_trail,
)
from tests.support.databases.commit_loser import CommitLoser, Loss
from tests.support.databases.postgres import Postgres
from tests.support.databases.standby import cancel_waiting_commits, require_standby, waiting_commits
from tests.support.programs.running import wait_until

CALLER = Caller("192.0.2.7")
LONG = 120.0  # seconds, for whatever must not depend on the speed of the machine


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a machine be slow: callers wait longer here than in production."""
    for module in (retries, writer_commits):
        monkeypatch.setattr(module, "_SECONDS", LONG)
    # The server ends an idle transaction of a writer after 90 % of this.
    monkeypatch.setattr(group_commit, "QUICK_SECONDS", 3.0)


@pytest.fixture(params=["READ COMMITTED", "SERIALIZABLE"])
def isolation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run every transaction of this test at this level."""
    level: str = request.param
    monkeypatch.setattr(deadlines, "ISOLATION", level)
    return level


@pytest.fixture
def proxy(postgres_url: str) -> Iterator[CommitLoser]:
    """Stand between the database of this test and its clients."""
    with CommitLoser(postgres_url) as proxy:
        yield proxy


def submit_together(
    authority: Authority, tokens: Sequence[CameraToken], meanwhile: Callable[[], None]
) -> Answers[Validation]:
    """Validate the tokens of one request, for a coroutine."""

    async def submit() -> Answers[Validation]:
        future = authority.validator.submit_together(tokens, CALLER)
        meanwhile()
        return await asyncio.wait_for(future, LONG)

    return asyncio.run(submit())


def assert_recorded_once(authority: Authority, tokens: int) -> None:
    """Assert that audit log, counters and replay ledger have each of so many new tokens once."""
    count_activity(authority)
    assert assert_counters_are_those_of_the_trail(authority.database) == tokens
    assert_the_ledger_agrees_with_the_trail(authority.database)
    assert_the_chains_verify(authority.database)
    for table in ("resubmitted_tokens", "lost_answers"):
        assert rows_of(authority.database, f"SELECT count(*) FROM {table}") == [(0,)]
    [(totals,)] = rows_of(
        authority.database, "SELECT sum(times) FROM running_totals WHERE counted = 'verdict'"
    )
    assert totals == tokens


@pytest.mark.usefixtures("isolation")
@pytest.mark.parametrize("loss", list(Loss))
def test_every_caller_gets_its_result(
    proxy: CommitLoser, tmp_path_factory: pytest.TempPathFactory, loss: Loss
) -> None:
    """Threats 8 and 17: tokens, batches, devices, whether the server got the COMMIT or not."""
    settings = small_settings(tmp_path_factory.mktemp("authority"), proxy.url)
    with new_authority(settings) as authority:
        proxy.lose(loss)
        camera = new_camera(authority, "camera")  # without an Idempotency-Key
        assert proxy.lost == 1
        devices = rows_of(authority.database, "SELECT device_serial FROM registered_devices")
        assert devices == [("camera",)]
        with pytest.raises(DeviceAlreadyProvisionedError):
            authority.provisioner.provision_device(request_for("camera"))

        proxy.lose(loss)
        token = camera.token()
        single = authority.validator.submit(token, CALLER).result(LONG)
        assert (single.verdict, single.repeat) == (Verdict.PASS, None)
        assert proxy.lost == 2

        batch = [camera.token() for _ in range(20)]
        answers = submit_together(authority, batch, lambda: proxy.lose(loss))
        assert [_repeat_of(each) for each in answers] == [None] * len(batch)
        assert proxy.lost == 3

        assert_recorded_once(authority, 1 + len(batch))
        again = authority.validator.submit(token, CALLER).result(LONG)
        assert (again.verdict, again.repeat) == (Verdict.PASS, Repeat.REPLAYED)


def _repeat_of(answer: object) -> Repeat | None:
    assert isinstance(answer, Validation)
    assert answer.verdict is Verdict.PASS
    return answer.repeat


# --- a PostgreSQL that waits for a synchronous standby


@pytest.fixture
def authority(
    own_postgres: Postgres, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Authority]:
    """Create an authority on a server of its own."""
    folder = tmp_path_factory.mktemp("authority")
    with new_authority(small_settings(folder, own_postgres.url)) as authority:
        yield authority
        if own_postgres.running:
            require_standby(own_postgres.url, "")


def submit_and_wait_for_commit(
    postgres: Postgres, authority: Authority
) -> "tuple[Future[Validation], dict[str, int]]":
    """Submit a token. Return its future and the COMMIT that waits for a standby."""
    camera = new_camera(authority, "camera")
    require_standby(postgres.url, "nobody")
    future = authority.validator.submit(camera.token(), CALLER)
    wait_until(lambda: bool(waiting_commits(postgres.url)), LONG)
    return future, waiting_commits(postgres.url)


def test_a_commit_that_was_not_replicated_is_not_acknowledged(
    own_postgres: Postgres, authority: Authority
) -> None:
    """Threat 30: an administrator cancels the wait, and PostgreSQL says success, with a warning.

    The lookup sees the transaction, and its own commit waits until the standby is there.
    """
    future, waiting = submit_and_wait_for_commit(own_postgres, authority)
    assert len(waiting) == 1
    cancel_waiting_commits(own_postgres.url)
    wait_until(lambda: bool(waiting_commits(own_postgres.url).keys() - waiting), LONG)
    assert not future.done()
    require_standby(own_postgres.url, "")
    assert future.result(LONG).verdict is Verdict.PASS
    assert_recorded_once(authority, 1)


def test_postgresql_is_killed_after_it_wrote_the_commit(
    own_postgres: Postgres, authority: Authority
) -> None:
    """After its restart the transaction is there: the verdict is delivered, and not made again."""
    future, _ = submit_and_wait_for_commit(own_postgres, authority)
    own_postgres.kill()
    configuration = own_postgres.data_directory / "postgresql.auto.conf"
    configuration.write_text("")
    own_postgres.start()
    validation = future.result(LONG)
    assert (validation.verdict, validation.repeat) == (Verdict.PASS, None)
    assert_recorded_once(authority, 1)
    [(sequence,)] = rows_of(
        authority.database, "SELECT max(sequence) FROM writer_commits WHERE sequence > 0"
    )
    assert sequence == 1


def test_postgresql_is_killed_before_it_got_the_commit(
    own_postgres: Postgres, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """After its restart the transaction is not there: the batch is handled again."""
    with CommitLoser(own_postgres.url) as proxy:
        folder = tmp_path_factory.mktemp("authority")
        with new_authority(small_settings(folder, proxy.url)) as authority:
            camera = new_camera(authority, "camera")
            proxy.lose(Loss.UNNOTICED)
            future = authority.validator.submit(camera.token(), CALLER)
            wait_until(lambda: proxy.lost == 1, LONG)
            own_postgres.kill()
            own_postgres.start()
            assert future.result(LONG).verdict is Verdict.PASS
            assert_recorded_once(authority, 1)
