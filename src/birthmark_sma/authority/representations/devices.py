"""JSON objects of devices, of acts on them, of permissions to re-enrol, and of abuse flags."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any

from birthmark_sma.authority.devices.abuse_flags import ShownFlag
from birthmark_sma.authority.devices.certificates_store import ListedCertificate
from birthmark_sma.authority.devices.re_enrolments import ReEnrolment
from birthmark_sma.authority.devices.revocation import ActResult
from birthmark_sma.authority.devices.states import StatusChange
from birthmark_sma.authority.devices.store import Device


def device_as_json(device: Device) -> dict[str, Any]:
    """Return a device. It contains no secret."""
    return {
        "device_serial": device.device_serial,
        "device_family": device.device_family,
        "app_version": device.app_version,
        "status": device.status.value,
        "status_reason": device.status_reason,
        "status_actor": device.status_actor,
        "status_changed_at": device.status_changed_at,
        "table_assignments": list(device.table_assignments),
        "table_epochs": list(device.table_epochs),
        "provisioning_id": device.provisioning_id,
        "provisioned_at": device.provisioned_at,
        "certificate_serial": device.certificate_serial,
        "certificate_expires_at": device.certificate_expires_at,
        "certificate_renewed_at": device.certificate_renewed_at,
        "public_key_sha256": device.public_key_fingerprint.hex(),
        "device_certificate": device.device_certificate,
    }


def whole_device_as_json(
    device: Device, allowed_until: datetime | None, earlier: Sequence[ListedCertificate]
) -> dict[str, Any]:
    """Return a device with its permission to re-enrol and its earlier certificates."""
    return device_as_json(device) | {
        "re_enrolment_allowed_until": allowed_until,
        "earlier_certificates": [_earlier_as_json(each) for each in earlier],
    }


def _earlier_as_json(each: ListedCertificate) -> dict[str, Any]:
    certificate, revocation = each.certificate, each.revocation
    return {
        "certificate_serial": certificate.certificate_serial,
        "not_before": certificate.not_before,
        "certificate_expires_at": certificate.certificate_expires_at,
        "replaced_at": certificate.replaced_at,
        "replaced_by": certificate.replaced_by,
        "revoked_at": revocation and revocation.revoked_at,
        "revocation_reason": revocation and revocation.revocation_reason,
    }


def count_changed(result: ActResult) -> list[tuple[tuple[str, str], int]]:
    """Return the numbers of devices to change, by family and status before the act."""
    return sorted(
        Counter((each.device_family, each.status.value) for each in result.changed).items()
    )


def act_as_json(
    result: ActResult, change: StatusChange, *, done: bool, most: int | None = None
) -> dict[str, Any]:
    """Return what an act on devices did, or would do if it is not done.

    Each list has up to `most` serials; the numbers and `counts` are always complete.
    """
    return {
        "act": change.act.value,
        "done": done,
        "reason": change.reason,
        "compromised_since": change.invalid_since,
        "actor": change.actor.name,
        "changed": [each.device_serial for each in result.changed[:most]],
        "unchanged": [each.device_serial for each in result.unchanged[:most]],
        "refused": [each.device_serial for each in result.refused[:most]],
        "refused_statuses": [each.status.value for each in result.refused[:most]],
        "unknown": result.unknown[:most],
        "changed_devices": len(result.changed),
        "unchanged_devices": len(result.unchanged),
        "refused_devices": len(result.refused),
        "counts": [
            {"device_family": family, "status": status, "devices": number}
            for (family, status), number in count_changed(result)
        ],
    }


def permission_as_json(permission: ReEnrolment) -> dict[str, Any]:
    """Return a permission to re-enrol."""
    return {
        "device_serial": permission.device_serial,
        "allowed_until": permission.allowed_until,
        "actor": permission.actor,
        "opened_at": permission.opened_at,
    }


def flag_as_json(shown: ShownFlag) -> dict[str, Any]:
    """Return an abuse flag, with the family and the present status of its device."""
    return asdict(shown.flag) | {"device_family": shown.device_family, "status": shown.status}
