"""Describe certificates and devices, as JSON for scripts and as fields for people.

`sma init`, `serve`, `ca` and `devices` use it. Nothing here may show a secret.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cryptography import x509

    from birthmark_sma.authority.devices.store import Device


def fingerprint(certificate: "x509.Certificate") -> str:
    """Return the SHA-256 fingerprint as pairs of upper-case hex digits, separated by colons."""
    from cryptography.hazmat.primitives.hashes import SHA256

    return certificate.fingerprint(SHA256()).hex(":").upper()


def certificate_as_json(certificate: "x509.Certificate") -> dict[str, Any]:
    """Return names, serial number, validity and fingerprint of a certificate, for JSON output."""
    return {
        "subject": certificate.subject.rfc4514_string(),
        "issuer": certificate.issuer.rfc4514_string(),
        "serial_number": f"{certificate.serial_number:x}",
        "not_before": certificate.not_valid_before_utc,
        "not_after": certificate.not_valid_after_utc,
        "sha256_fingerprint": fingerprint(certificate),
    }


def certificate_as_fields(title: str, certificate: "x509.Certificate") -> list[tuple[str, str]]:
    """Return common name, validity and fingerprint of a certificate, for `print_fields`."""
    from cryptography.x509.oid import NameOID

    [name] = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    digest = fingerprint(certificate)
    middle = digest.find(":", len(digest) // 2) + 1
    begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    return [
        (title, str(name.value)),
        ("  valid", f"{begins:%Y-%m-%d} to {ends:%Y-%m-%d}"),
        ("  SHA-256", f"{digest[:middle]}\n{digest[middle:]}"),
    ]


def device_as_json(device: "Device") -> dict[str, Any]:
    """Return a device for JSON output. It contains no secret."""
    return {
        "device_serial": device.device_serial,
        "device_family": device.device_family,
        "app_version": device.app_version,
        "status": device.status.value,
        "table_assignments": list(device.table_assignments),
        "table_epochs": list(device.table_epochs),
        "provisioning_id": device.provisioning_id,
        "provisioned_at": device.provisioned_at,
        "certificate_serial": device.certificate_serial,
        "public_key_sha256": device.public_key_fingerprint.hex(),
        "device_certificate": device.device_certificate,
    }


def device_as_fields(device: "Device") -> list[tuple[str, str]]:
    """Return a device and its certificate, for `print_fields`. It contains no secret."""
    from cryptography import x509

    certificate = x509.load_pem_x509_certificate(device.device_certificate.encode())
    return [
        ("device", device.device_serial),
        ("family", device.device_family),
        ("app version", device.app_version or "-"),
        ("status", device.status.value),
        ("tables", _describe_tables(device)),
        ("provisioned", f"{device.provisioned_at:%Y-%m-%d %H:%M:%S} UTC"),
        ("", device.provisioning_id),
        *certificate_as_fields("certificate", certificate),
    ]


def _describe_tables(device: "Device") -> str:
    """Return the tables of a device, with the epochs of its keys where a table was rotated."""
    both = zip(device.table_assignments, device.table_epochs, strict=False)
    return ", ".join(f"{table} (epoch {epoch})" if epoch else str(table) for table, epoch in both)
