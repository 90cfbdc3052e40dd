"""The power goes at the worst moments: what is left on disk is enough, nothing comes twice."""

from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2
import pytest

from birthmark_sma.authority.authority import Authority
from birthmark_sma.device import UNSEALED, Delivery, bundle_id
from birthmark_sma.errors import AuthorityAwayError
from birthmark_sma.protocol.bundle import Bundle
from tests.device.conftest import StartCamera
from tests.support.in_process import InProcess
from tests.support.programs.power_loss import Power


@pytest.fixture
def power(monkeypatch: pytest.MonkeyPatch) -> Iterator[Power]:
    """Watches what is on disk for certain."""
    watching = Power(monkeypatch)
    yield watching
    watching.close()


def test_when_the_request_leaves(
    start: StartCamera, authority: Authority, power: Power, place: Path, tmp_path: Path
) -> None:
    """Threats 8 and 30: by then, all that a repetition needs is on disk."""

    def cut(request: httpx2.Request, answer: Callable[[], httpx2.Response]) -> httpx2.Response:
        assert answer().status_code == 200
        power.cut(place, tmp_path / "left")
        raise httpx2.ReadError("the power is gone", request=request)

    first = InProcess(authority, cut)
    with pytest.raises(AuthorityAwayError):
        start(client=first)
    second = InProcess(authority)
    camera = start(tmp_path / "left", client=second)
    assert camera.capture(b"picture")
    assert first.requests[0].content == second.requests[0].content


def test_after_the_first_start(
    start: StartCamera, authority: Authority, power: Power, place: Path, tmp_path: Path
) -> None:
    """Threat 30: once the camera stands, it need not ask again."""
    camera = start()
    asked = InProcess(authority)
    left = start(power.cut(place, tmp_path / "left"), client=asked)
    assert left.certificate == camera.certificate
    assert asked.requests == []


@pytest.mark.usefixtures("no_chance")
@pytest.mark.parametrize("pictures", [1, 255, 256, 257, 700])
def test_after_a_picture(
    start: StartCamera, power: Power, place: Path, tmp_path: Path, pictures: int
) -> None:
    """What came out of the camera before the cut does not come out of it again."""
    camera = start()
    before = {camera.capture(b"picture").content.camera_token.nonce for _ in range(pictures)}
    left = start(power.cut(place, tmp_path / "left"))
    after = {left.capture(b"picture").content.camera_token.nonce for _ in range(1_000)}
    assert len(before) == pictures
    assert len(after) == 1_000
    assert not before & after


def test_while_bundles_are_sent(
    start: StartCamera, power: Power, place: Path, tmp_path: Path
) -> None:
    """Queued is on disk, and acknowledged is off it: at each moment of a drain."""
    camera = start()
    bundles = [camera.capture(bytes([n])) for n in range(5)]
    for bundle in bundles:
        camera.queue.put(bundle)
    ids = [bundle_id(bundle) for bundle in bundles]
    moments: list[Path] = []

    def send(bundle: Bundle) -> Delivery:
        moments.append(power.cut(place, tmp_path / f"during {bundle_id(bundle)}"))
        return Delivery.TAKEN

    camera.queue.drain(send)
    assert len(moments) == 5
    for n, moment in enumerate(moments):
        arrived: list[str] = []

        def note(bundle: Bundle, arrived: list[str] = arrived) -> Delivery:
            arrived.append(bundle_id(bundle))
            return Delivery.TAKEN

        start(moment).queue.drain(note)
        # The one that was under way goes again; those before it do not, and none is missing.
        assert arrived == ids[n:]
    assert len(start(power.cut(place, tmp_path / "end")).queue) == 0


def test_the_watch_itself(power: Power, tmp_path: Path) -> None:
    """Without fsync nothing is left: a camera that left one out would be found out above."""
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "lost").write_bytes(b"content")
    assert list(power.cut(folder, tmp_path / "left").iterdir()) == []
    assert UNSEALED.derive is None
