"""An authority on SQLite with rows in many tables, and moves of it to PostgreSQL."""

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from birthmark_sma.authority.access.caller import Caller
from birthmark_sma.authority.background.privacy import coarsening
from birthmark_sma.authority.operations.moving.move import Moved, move_authority
from birthmark_sma.config import Settings
from tests.support.authorities import (
    count_activity,
    execute,
    new_authority,
    new_camera,
    small_settings,
)
from tests.support.cameras.camera import Camera
from tests.support.days import current_time
from tests.support.devices.actors import ACTOR

DAYS = (400, 31, 2, 1, 0)
"""The ages of audit rows in days."""


@contextmanager
def no_bar(_what: str, _unit: str) -> Iterator[Any]:
    """Take the place of a progress bar."""
    yield lambda _done, _total: None


def fill(folder: Path, *, devices: int = 7) -> tuple[Settings, list[Camera]]:
    """Create an authority on SQLite with devices, and with coarse and exact audit rows."""
    folder.mkdir(exist_ok=True)
    settings = small_settings(folder, None)
    with new_authority(settings) as authority:
        cameras = [new_camera(authority, f"cam-{number}") for number in range(devices)]
        for camera in cameras:
            authority.validator.submit(camera.token(), Caller(None)).result()
        count_activity(authority)
        tomorrow = current_time() + timedelta(days=1)
        coarsening.coarsen(
            authority.database, tomorrow, lambda _seconds: False, keks=authority.secrets.keks
        )
        for days in DAYS:
            execute(
                authority.database,
                "INSERT INTO validation_history (encrypted_nuc_hash, table_id, key_index,"
                " validation_result, reason, validated_at) VALUES (:sealed, 1, 2, 'FAIL',"
                " 'not_opened', :at)",
                sealed=secrets.token_bytes(48),
                at=(current_time() - timedelta(days=days)).isoformat(" ", "microseconds"),
            )
    return settings, cameras


def to_postgresql(settings: Settings, url: str) -> Settings:
    """Return the same settings with a PostgreSQL database."""
    return settings.model_copy(update={"database_url": SecretStr(url)})


def move(settings: Settings, url: str) -> Moved:
    """Move the authority of these settings."""
    return move_authority(settings, to_postgresql(settings, url), no_bar, ACTOR, lambda: None)
