"""The validator of a sandbox: some table ids have a fixed verdict (see `verdicts`).

It takes the place of `Validator` in a sandbox. Its verdicts go through the same batches and into
the same audit log, but no caller may see a device serial with a fixed verdict.
"""

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from datetime import datetime

from sqlalchemy import Connection

from birthmark_sma.authority.access.caller import Caller
from birthmark_sma.authority.sandbox.verdicts import scripted_reason
from birthmark_sma.authority.validation.opening import Opening
from birthmark_sma.authority.validation.records import Attempt, FoundDevice, Validation
from birthmark_sma.authority.validation.service import Validator
from birthmark_sma.errors import BirthmarkError
from birthmark_sma.protocol.camera_token import CameraToken, token_digest
from birthmark_sma.protocol.key_derivation import NORMATIVE, Derivation
from birthmark_sma.protocol.verdict import Verdict
from birthmark_sma.runtime.log_context import LoggedRequest
from birthmark_sma.runtime.submission import Answers
from birthmark_sma.storage.pool.pool import Reservation

SERIAL = "SANDBOX-CAMERA"
FAMILY = "Sandbox"
"""The device serial and family of a scripted PASS in the audit trail. Callers never get them: there
is no such device, so a comparison with the serial of the signer of a bundle would fail."""

_TABLE: ContextVar[int | None] = ContextVar("scripted_table", default=None)


@contextmanager
def as_of_table(table_id: int) -> Iterator[None]:
    """Replace the table id of each camera token that is submitted in this block by `table_id`."""
    before = _TABLE.set(table_id)
    try:
        yield
    finally:
        _TABLE.reset(before)


class SandboxValidator(Validator):
    """Validates like `Validator`, except for table ids that have a fixed verdict."""

    def submit_async(
        self,
        camera_token: CameraToken,
        caller: Caller,
        request: LoggedRequest | None = None,
        derivation: Derivation = NORMATIVE,
        alternatives: Sequence[CameraToken] = (),
    ) -> "asyncio.Future[Validation]":
        """Submit a token, with the table id that `as_of_table` set."""
        scripted = _scripted(camera_token)
        if scripted is not camera_token:
            # The alternatives keep their own table id, which would give another verdict.
            alternatives = ()
        return super().submit_async(scripted, caller, request, derivation, alternatives)

    def submit_together(
        self,
        camera_tokens: Sequence[CameraToken],
        caller: Caller,
        request: LoggedRequest | None = None,
        room: Reservation | None = None,
        positions: Sequence[int] | None = None,
    ) -> "asyncio.Future[Answers[Validation]]":
        """Submit tokens as one batch, with the table id that `as_of_table` set."""
        scripted = [*map(_scripted, camera_tokens)]
        return super().submit_together(scripted, caller, request, room, positions)

    # --- in the writer thread

    # Overrides the batch handler. The base class has written the audit rows, with SERIAL and
    # FAMILY, before these are removed from what the callers get.
    def _handle_batch(
        self, transaction: Connection, attempts: Sequence[Attempt]
    ) -> Sequence[Validation | BirthmarkError]:
        return [
            validation._replace(device_serial=None, device_family=None)
            if isinstance(validation, Validation)
            and scripted_reason(attempt.camera_token.table_id) is not None
            else validation
            for attempt, validation in zip(
                attempts, super()._handle_batch(transaction, attempts), strict=True
            )
        ]

    # Overrides the judgement of one token: a fixed verdict does not depend on device or key.
    def _judge(self, opening: Opening, device: FoundDevice | None, now: datetime) -> Validation:
        attempt = opening.attempt
        reason = scripted_reason(attempt.camera_token.table_id)
        if reason is None:
            return super()._judge(opening, device, now)
        digest = token_digest(attempt.camera_token, attempt.derivation)
        if reason.verdict is Verdict.PASS:
            return Validation(reason, SERIAL, FAMILY, now, digest)
        return Validation(reason, None, None, now, digest)


def _scripted(camera_token: CameraToken) -> CameraToken:
    table_id = _TABLE.get()
    return camera_token if table_id is None else replace(camera_token, table_id=table_id)
