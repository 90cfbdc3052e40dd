"""An operator's order, a real server, and cameras that follow it by themselves."""

import time
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509

from birthmark_sma.authority.ca.issuers import ROOT_PATH
from birthmark_sma.client import verify_bundle
from birthmark_sma.device import UNSEALED, Camera, Enrolment, Renewal, start_camera
from birthmark_sma.protocol.bundle import Bundle
from tests.end_to_end.conftest import Start
from tests.support.cameras.camera import VALIDATE, wire
from tests.support.programs.commands import sma
from tests.support.programs.running import new_serial, wait_until


def test_cameras_follow_an_order(start_server: Start, tmp_path: Path) -> None:
    """They renew within its window, capture meanwhile, and every picture passes."""
    running = start_server()
    manual = Renewal(automatic=False)
    # The thread looks at its plan every second.
    by_itself = Renewal(supersede=True, wait=lambda seconds: time.sleep(min(seconds, 1)))

    def start(number: int, renewal: Renewal) -> Camera:
        enrolment = Enrolment(running.server.url, f"{serial}-{number}", "Ordered")
        place = tmp_path / str(number)
        return start_camera(place, sealing=UNSEALED, enrolment=enrolment, renewal=renewal)

    serial = new_serial("ordered")
    for number in range(3):
        camera = start(number, manual)
        camera.renew_if_due()  # the window is two years away
        camera.close()
        (tmp_path / str(number) / "renewal.json").unlink()
    ordered = sma(
        "renewals", "order", "--family", "Ordered", "--within", "1m", "--yes",
        environ=running.environ,
    )  # fmt: skip
    assert ordered.returncode == 0, ordered.stderr
    cameras = [start(number, by_itself) for number in range(3)]
    before = [camera.certificate for camera in cameras]
    bundles: list[Bundle] = []

    def all_renewed() -> bool:
        bundles.extend(camera.capture(b"picture") for camera in cameras)
        return all(camera.certificate not in before for camera in cameras)

    wait_until(all_renewed, 120)
    all_renewed()
    with running.client() as client:
        root = x509.load_der_x509_certificate(client.get(ROOT_PATH).content)
        for bundle in [*bundles[:6], *bundles[-6:]]:
            verified = verify_bundle(bundle, root=root, now=datetime.now(UTC))
            answer = client.post(VALIDATE, json=wire(verified.camera_token)).json()
            assert answer["validation_result"] == "PASS"
    for camera in cameras:
        camera.close()
    listed = sma("renewals", "list", "--json", environ=running.environ)
    assert '"left": 0' in listed.stdout, listed.stdout
