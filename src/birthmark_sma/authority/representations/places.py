"""The place in a list of devices by the end of their certificates, as a text. PURE."""

from datetime import UTC, datetime


def describe_expiry(expires_at: datetime, device_serial: str) -> str:
    """Return the place of a device. Certificates end at full seconds."""
    return f"{expires_at.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ} {device_serial}"


def parse_expiry(place: str) -> tuple[datetime, str] | None:
    """Return the end and the serial of a place, or None if the text is no place."""
    end, _, serial = place.partition(" ")
    try:
        time = datetime.fromisoformat(end)
        return (time.astimezone(UTC), serial) if serial and time.tzinfo is not None else None
    except (ValueError, OverflowError):
        return None
