"""What a sandbox was given is gone after an hour, and nothing before."""

from datetime import UTC, datetime, timedelta

from birthmark_sma.authority.background.sandbox_expiry import SandboxExpiry
from birthmark_sma.authority.operations import statistics
from tests.support.cameras.camera import (
    PROVISION,
    VALIDATE,
    Camera,
    provision_body,
    wire,
)
from tests.support.programs.running import Running, new_serial, wait_until

TABLES = (
    "registered_devices",
    "revoked_certificates",
    "idempotent_responses",
    "validation_history",
    "sighted_tokens",
    "validation_counters",
)


def test_an_hour_later_nothing_is_left(each_sandbox: Running) -> None:
    """Devices, revocations, answers and trail; the family counts follow, and it goes on."""
    serial = f"SANDBOX-REVOKED-{new_serial()}"
    with each_sandbox.client() as client:
        body, headers = provision_body(serial), {"Idempotency-Key": serial}
        camera = Camera.of(serial, client.post(PROVISION, json=body, headers=headers).json())
        client.post(VALIDATE, json=wire(camera.token()))
        with each_sandbox.database() as database:
            chore = SandboxExpiry(database, None)
            before = {table: each_sandbox.count(table) for table in TABLES}
            assert min(before.values()) > 0, before
            chore.work(datetime.now(UTC) + timedelta(minutes=10))
            # Slow answers that other tests did not wait for may still come in.
            assert all(each_sandbox.count(table) >= before[table] for table in TABLES)

            def is_empty() -> bool:
                chore.work(datetime.now(UTC) + timedelta(minutes=62))
                return not any(each_sandbox.count(table) for table in TABLES)

            wait_until(is_empty, 20)
            assert statistics.count_registered(database) == 0
            chore.work(datetime.now(UTC) + timedelta(minutes=62))
        failed = client.post(VALIDATE, json=wire(camera.token())).json()
        assert failed["validation_result"] == "FAIL"
        again = Camera.provisioned(client, serial.replace("SANDBOX-REVOKED-", ""))
        passed = client.post(VALIDATE, json=wire(again.token())).json()
        assert passed["validation_result"] == "PASS"
