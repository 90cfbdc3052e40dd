"""Each batch costs three round trips to PostgreSQL, whatever its size."""

from pathlib import Path

from birthmark_sma.authority.access.caller import Caller
from birthmark_sma.protocol.verdict import Verdict
from tests.support.authorities import new_authority, new_camera, small_settings
from tests.support.databases.answer_counter import AnswerCounter

CALLER = Caller("192.0.2.7")
WARM_UP = 3  # the first batches prepare the statements


def test_the_round_trips_of_a_batch(postgres_url: str, tmp_path: Path) -> None:
    """BEGIN and the devices; the replay ledger; the audit rows and COMMIT."""
    with (
        AnswerCounter(postgres_url) as counter,
        new_authority(small_settings(tmp_path, counter.url)) as authority,
    ):
        camera = new_camera(authority, "camera-1")
        for _ in range(WARM_UP):
            authority.validator.submit(camera.token(), CALLER).result(30)
        for _ in range(2):
            before = counter.answers
            validation = authority.validator.submit(camera.token(), CALLER).result(30)
            assert validation.verdict is Verdict.PASS
            assert counter.answers == before + 3
