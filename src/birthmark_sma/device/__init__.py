"""Library for cameras: provision, capture pictures, and queue bundles while offline.

    with start_camera(directory, sealing=key_file(path), enrolment=Enrolment(...)) as camera:
        camera.queue.put(camera.capture(picture))
        camera.queue.drain(camera.intake("https://aggregator.example/bundles"))

It needs `cryptography` and `httpx2`, and must never import the authority. The guide is
docs/integrate/camera-python.md. `nonces` explains why no nonce is ever used twice, `clock` how a
camera detects that its clock is wrong.
"""

from birthmark_sma.device.bounded_http import bounded_post
from birthmark_sma.device.bundle_queue import BundleQueue, Delivery, Later, bundle_id
from birthmark_sma.device.camera import Camera, renew_nonces, start_camera
from birthmark_sma.device.intake import Intake
from birthmark_sma.device.provisioning import Enrolment
from birthmark_sma.device.renewal.renewer import Renewal
from birthmark_sma.device.state_encryption import (
    UNSEALED,
    Sealing,
    key_command,
    key_file,
    passphrase,
)
from birthmark_sma.errors import (
    AuthorityAwayError,
    BirthmarkError,
    ConfigurationError,
    DamagedDeviceStateError,
    DeviceBusyError,
    DeviceError,
    DeviceSecretError,
    DeviceStorageError,
    EmptyPictureError,
    NoncesUsedUpError,
    OtherDeviceError,
    ProvisioningError,
    ProvisioningRefusedError,
    QueueFullError,
    WrongClockError,
)
from birthmark_sma.protocol.bundle import Bundle
from birthmark_sma.protocol.camera_token import CameraToken

__all__ = [
    "UNSEALED",
    "AuthorityAwayError",
    "BirthmarkError",
    "Bundle",
    "BundleQueue",
    "Camera",
    "CameraToken",
    "ConfigurationError",
    "DamagedDeviceStateError",
    "Delivery",
    "DeviceBusyError",
    "DeviceError",
    "DeviceSecretError",
    "DeviceStorageError",
    "EmptyPictureError",
    "Enrolment",
    "Intake",
    "Later",
    "NoncesUsedUpError",
    "OtherDeviceError",
    "ProvisioningError",
    "ProvisioningRefusedError",
    "QueueFullError",
    "Renewal",
    "Sealing",
    "WrongClockError",
    "bounded_post",
    "bundle_id",
    "key_command",
    "key_file",
    "passphrase",
    "renew_nonces",
    "start_camera",
]
