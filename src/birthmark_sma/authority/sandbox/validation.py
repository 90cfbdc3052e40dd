"""A validator whose verdicts can be had by table id, and stand in the audit trail as any other."""

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from datetime import datetime

from sqlalchemy import Connection

from birthmark_sma.authority.access.caller import Caller
from birthmark_sma.authority.sandbox.verdicts import scripted_reason
from birthmark_sma.authority.validation.device_lookup import FoundDevice
from birthmark_sma.authority.validation.service import Attempt, Validation, Validator
from birthmark_sma.errors import BirthmarkError
from birthmark_sma.protocol.camera_token import CameraToken
from birthmark_sma.protocol.key_derivation import NORMATIVE, Derivation
from birthmark_sma.protocol.replay import token_digest
from birthmark_sma.protocol.verdict import Verdict
from birthmark_sma.runtime.log_context import LoggedRequest
from birthmark_sma.storage.group_commit import Answers

SERIAL = "SANDBOX-CAMERA"
FAMILY = "Sandbox"
"""Of which device the audit trail has a scripted PASS. No caller is told: there is no such device,
and whoever compares serials would take it for another one than that which signed a bundle."""

_TABLE: ContextVar[int | None] = ContextVar("scripted_table", default=None)


@contextmanager
def as_of_table(table_id: int) -> Iterator[None]:
    """Let every camera token that is offered in this block be judged as one of this table."""
    before = _TABLE.set(table_id)
    try:
        yield
    finally:
        _TABLE.reset(before)


class SandboxValidator(Validator):
    """Judges as ever, but for table ids that are scripts."""

    def submit_async(
        self,
        camera_token: CameraToken,
        caller: Caller,
        origin: LoggedRequest | None = None,
        derivation: Derivation = NORMATIVE,
        alternatives: Sequence[CameraToken] = (),
    ) -> "asyncio.Future[Validation]":
        """Judge a token, as of the table that the request asks for."""
        scripted = _scripted(camera_token)
        if scripted is not camera_token:
            alternatives = ()
        return super().submit_async(scripted, caller, origin, derivation, alternatives)

    def offer_together(
        self,
        camera_tokens: Sequence[CameraToken],
        caller: Caller,
        origin: LoggedRequest | None = None,
    ) -> "asyncio.Future[Answers[Validation]]":
        """Judge tokens, as of the table that the request asks for."""
        return super().offer_together([*map(_scripted, camera_tokens)], caller, origin)

    # --- in the writer thread

    def _settle(
        self, transaction: Connection, attempts: Sequence[Attempt]
    ) -> Sequence[Validation | BirthmarkError]:
        return [
            validation._replace(device_serial=None, device_family=None)
            if isinstance(validation, Validation)
            and scripted_reason(attempt.camera_token.table_id) is not None
            else validation
            for attempt, validation in zip(
                attempts, super()._settle(transaction, attempts), strict=True
            )
        ]

    def _judge(
        self,
        attempt: Attempt,
        opened: bool,  # noqa: FBT001
        device: FoundDevice | None,
        now: datetime,
    ) -> Validation:
        reason = scripted_reason(attempt.camera_token.table_id)
        if reason is None:
            return super()._judge(attempt, opened, device, now)
        digest = token_digest(attempt.camera_token, attempt.derivation)
        if reason.verdict is Verdict.PASS:
            return Validation(reason, SERIAL, FAMILY, now, digest)
        return Validation(reason, None, None, now, digest)


def _scripted(camera_token: CameraToken) -> CameraToken:
    table_id = _TABLE.get()
    return camera_token if table_id is None else replace(camera_token, table_id=table_id)
