"""Devices as rows of the register, without keys and certificates that anybody could use."""

from datetime import UTC, datetime

from birthmark_sma.authority.devices.store import Device
from birthmark_sma.protocol.verdict import DeviceStatus

NOW = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)


def device(number: int) -> Device:
    """Return a device in which everything has this number."""
    return Device(
        device_serial=f"device-{number:04}",
        nuc_hash=number.to_bytes(32, "big"),
        table_assignments=(number, number + 5, number + 700),
        device_certificate=f"certificate {number}",
        certificate_serial=f"{number:x}",
        device_public_key=f"key {number}",
        public_key_fingerprint=number.to_bytes(32, "little"),
        device_family="Test",
        app_version=None,
        status=DeviceStatus.ACTIVE,
        provisioning_id=f"PROV-20260102-{number}",
        provisioned_at=NOW,
        table_epochs=(0, number, 2),
    )
