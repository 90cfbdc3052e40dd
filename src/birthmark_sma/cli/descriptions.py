"""Describe certificates and devices as fields for people.

`sma init`, `ca` and `devices` use it; `authority.representations` has the JSON objects. Nothing
here may show a secret.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cryptography import x509

    from birthmark_sma.web.api.administration.responses import DeviceItem, DeviceResponse


def common_name(certificate: "x509.Certificate") -> str:
    """Return the common name of a certificate of this authority."""
    from cryptography.x509.oid import NameOID

    [name] = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(name.value)


def certificate_as_fields(title: str, certificate: "x509.Certificate") -> list[tuple[str, str]]:
    """Return common name, validity and fingerprint of a certificate, for `print_fields`."""
    from birthmark_sma.authority.representations.certificates import fingerprint

    digest = fingerprint(certificate)
    middle = digest.find(":", len(digest) // 2) + 1
    begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    return [
        (title, common_name(certificate)),
        ("  valid", f"{begins:%Y-%m-%d} to {ends:%Y-%m-%d}"),
        ("  SHA-256", f"{digest[:middle]}\n{digest[middle:]}"),
    ]


def device_as_fields(device: "DeviceItem") -> list[tuple[str, str]]:
    """Return a device and its certificate, for `print_fields`. It contains no secret."""
    from cryptography import x509

    certificate = x509.load_pem_x509_certificate(device.device_certificate.encode())
    renewed = device.certificate_renewed_at
    return [
        ("device", device.device_serial),
        ("family", device.device_family),
        ("app version", device.app_version or "-"),
        ("status", _status(device)),
        ("tables", _describe_tables(device)),
        ("provisioned", f"{device.provisioned_at:%Y-%m-%d %H:%M:%S} UTC"),
        ("", device.provisioning_id),
        *([] if renewed is None else [("renewed", f"{renewed:%Y-%m-%d %H:%M:%S} UTC")]),
        *certificate_as_fields("certificate", certificate),
    ]


def _status(device: "DeviceItem") -> str:
    """Return the status with the reason, the time and the actor of its last change."""
    if device.status_changed_at is None:
        return device.status
    reason = f" ({device.status_reason})" if device.status_reason else ""
    actor = f" by {device.status_actor}" if device.status_actor else ""
    since = f"since {device.status_changed_at:%Y-%m-%d %H:%M:%S} UTC{actor}"
    return f"{device.status}{reason}\n{since}"


def earlier_as_fields(device: "DeviceResponse") -> list[tuple[str, str]]:
    """Return the earlier certificates and the permission to re-enrol, for `print_fields`."""
    found = []
    allowed_until = device.re_enrolment_allowed_until
    if allowed_until is not None:
        found.append(("re-enrolment", f"allowed until {allowed_until:%Y-%m-%d %H:%M} UTC"))
    for each in device.earlier_certificates:
        state = "not revoked" if each.revoked_at is None else f"revoked: {each.revocation_reason}"
        ends = each.certificate_expires_at
        until = "" if ends is None else f", valid to {ends:%Y-%m-%d}"
        replaced = f"replaced {each.replaced_at:%Y-%m-%d %H:%M} UTC"
        lines = [each.certificate_serial, f"{replaced} ({each.replaced_by}), {state}{until}"]
        found.append(("earlier", "\n".join(lines)))
    return found


def _describe_tables(device: "DeviceItem") -> str:
    """Return the tables of a device, with the epochs of its keys where a table was rotated."""
    both = zip(device.table_assignments, device.table_epochs, strict=False)
    return ", ".join(f"{table} (epoch {epoch})" if epoch else str(table) for table, epoch in both)
