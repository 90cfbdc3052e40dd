"""What a camera imports: it is provisioned, captures pictures, and queues bundles while offline.

    with start_camera(directory, sealing=key_file(path), enrolment=Enrolment(...)) as camera:
        camera.queue.put(camera.capture(picture))
        camera.queue.drain(send)

It needs `cryptography` and `httpx2`, and nothing of the authority. docs/camera.md is the guide;
`nonces` says why no nonce is ever used twice.
"""

from birthmark_sma.device.bounded_post import bounded_post
from birthmark_sma.device.bundle_queue import BundleQueue, Delivery, bundle_id
from birthmark_sma.device.camera import Camera, renew_nonces, start_camera
from birthmark_sma.device.provisioning import Enrolment
from birthmark_sma.device.sealing import UNSEALED, Sealing, key_command, key_file, passphrase

__all__ = [
    "UNSEALED",
    "BundleQueue",
    "Camera",
    "Delivery",
    "Enrolment",
    "Sealing",
    "bounded_post",
    "bundle_id",
    "key_command",
    "key_file",
    "passphrase",
    "renew_nonces",
    "start_camera",
]
