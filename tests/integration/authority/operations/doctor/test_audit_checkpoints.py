"""The doctor tells the key of the checkpoints, and warns if nothing is signed for minutes."""

from datetime import timedelta

from sqlalchemy import func, select, update

from birthmark_sma.authority.audit_chain.keys import find_verifier
from birthmark_sma.authority.authority import Authority
from birthmark_sma.authority.background.audit_checkpoints import AuditCheckpoints
from birthmark_sma.authority.operations.doctor.audit_checkpoints import check_checkpoints
from birthmark_sma.authority.operations.doctor.findings import Finding, State
from birthmark_sma.storage.schema.acts import administrative_acts
from birthmark_sma.storage.schema.audit_chain import audit_checkpoints
from tests.support.authorities import execute, new_camera
from tests.support.days import current_time
from tests.support.devices.acts import suspend_device

MINUTES = timedelta(minutes=7)


def found(authority: Authority) -> list[Finding]:
    """Return the findings."""
    return list(check_checkpoints(authority.database))


def test_before_a_server_ran(authority: Authority) -> None:
    """There is no key yet, and nothing is wrong."""
    assert [each.state for each in found(authority)] == [State.NOTED]


def test_the_age_of_the_last_checkpoint(authority: Authority) -> None:
    """It may be old while nothing is written. Something that waits for minutes is a warning."""
    AuditCheckpoints(authority.database, authority.secrets.keks).work(current_time())
    with authority.database.write() as transaction:
        transaction.execute(update(audit_checkpoints).values(made_at=current_time() - 2 * MINUTES))
        key = find_verifier(transaction)
    assert [each.state for each in found(authority)] == [State.NOTED, State.WELL]
    assert str(key) in found(authority)[0].sentence
    camera = new_camera(authority, "camera")
    suspend_device(authority.database, camera.serial)
    assert found(authority)[-1].state is State.WELL
    acts = administrative_acts.c
    newest = select(func.max(acts.id)).scalar_subquery()
    with authority.database.write() as transaction:
        transaction.execute(
            update(administrative_acts)
            .where(acts.id == newest)
            .values(acted_at=current_time() - MINUTES)
        )
    late = found(authority)[-1]
    assert late.state is State.WARNING
    assert "for 7 minutes" in late.sentence


def test_a_trail_that_somebody_changed(authority: Authority) -> None:
    """Checkpoints that do not fit, and a key that is gone, are critical."""
    AuditCheckpoints(authority.database, authority.secrets.keks).work(current_time())
    execute(authority.database, "UPDATE audit_checkpoints SET note = replace(note, 'heads', 'had')")
    assert [each.state for each in found(authority)] == [State.CRITICAL]
    execute(authority.database, "DELETE FROM audit_keys")
    [gone] = found(authority)
    assert gone.state is State.CRITICAL
    assert "gone" in gone.sentence
