"""A validator whose verdicts can be had by table id, and stand in the audit trail as any other."""

from datetime import datetime

from birthmark_sma.authority.sandbox.scripted_verdicts import reason_of
from birthmark_sma.authority.validation import Attempt, Validation, Validator
from birthmark_sma.protocol.repeat import Repeat
from birthmark_sma.protocol.verdict import Verdict
from birthmark_sma.storage.standings import DeviceStanding

SERIAL = "SANDBOX-CAMERA"
FAMILY = "Sandbox"
"""What a scripted PASS tells of the device, which does not exist."""


class SandboxValidator(Validator):
    """Judges as ever, but for table ids that are scripts."""

    def _judge(
        self,
        attempt: Attempt,
        opened: bool,  # noqa: FBT001
        device: DeviceStanding | None,
        now: datetime,
        repeat: Repeat | None,
    ) -> Validation:
        reason = reason_of(attempt.camera_token.table_id)
        if reason is None:
            return super()._judge(attempt, opened, device, now, repeat)
        if reason.verdict is Verdict.PASS:
            return Validation(reason, SERIAL, FAMILY, now, repeat)
        return Validation(reason, None, None, now, repeat)
