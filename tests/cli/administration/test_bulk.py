"""One act on many devices is few requests, and none is done if devices prevent it."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import pytest

from birthmark_sma.authority.acts.actor import Actor, Source
from birthmark_sma.authority.devices import states
from birthmark_sma.authority.devices.revocation import DeviceCriteria
from birthmark_sma.cli.administration import bulk
from birthmark_sma.cli.administration.bulk import act_in_pieces
from birthmark_sma.errors import AuthorityAwayError, RefusedByServerError, UnknownDeviceError
from birthmark_sma.web.api.administration.responses import DeviceActResponse

ACTOR = Actor("olga@vault", Source.COMMAND_LINE)
SUSPEND = states.suspend(ACTOR)


class Server:
    """Answers the requests, and keeps them. `unknown` are serials that are not registered."""

    def __init__(self, *unknown: str, fails_at: int | None = None) -> None:
        self.bodies: list[Mapping[str, Any]] = []
        self._unknown = set(unknown)
        self._fails_at = fails_at

    @property
    def acts(self) -> list[Mapping[str, Any]]:
        """The requests that were not previews."""
        return [each for each in self.bodies if not each.get("preview")]

    def send(self, body: Mapping[str, Any]) -> DeviceActResponse:
        """Return what the API would."""
        self.bodies.append(body)
        serials: list[str] = body.get("device_serials", [])
        unknown = [each for each in serials if each in self._unknown]
        if not body.get("preview") and len(self.acts) == self._fails_at:
            raise AuthorityAwayError("No server answers.")
        if unknown and not body.get("preview"):
            raise RefusedByServerError("No device.", status=404, same_as=UnknownDeviceError)
        known = [each for each in serials if each not in self._unknown]
        return DeviceActResponse.model_validate(
            {
                "act": body["act"],
                "done": not body.get("preview"),
                "reason": body.get("reason"),
                "compromised_since": None,
                "actor": "a key",
                "changed": known,
                "unchanged": [],
                "refused": [],
                "refused_statuses": [],
                "unknown": unknown,
                "changed_devices": len(known),
                "unchanged_devices": 0,
                "refused_devices": 0,
                "counts": [{"device_family": "Pi", "status": "active", "devices": len(known)}],
            }
        )


def test_criteria_are_one_request() -> None:
    server = Server()
    since = datetime(2026, 3, 1, tzinfo=UTC)
    wanted = DeviceCriteria(family="Pi", provisioned_after=since, table_id=0)
    act_in_pieces(server.send, wanted, SUSPEND, dry_run=False)
    criteria = {"device_family": "Pi", "provisioned_after": since.isoformat(), "table": 0}
    assert server.bodies == [{"act": "suspend", "reason": "certificate_hold", "criteria": criteria}]


def test_many_serials_are_several_acts_and_all_are_previewed_first(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bulk, "MOST_SERIALS", 2)
    server = Server()
    result = act_in_pieces(server.send, ["a", "b", "a", "c"], SUSPEND, dry_run=False)
    asked = [(each.get("preview", False), each["device_serials"]) for each in server.bodies]
    pieces = [["a", "b"], ["c"]]
    assert asked == [*((True, each) for each in pieces), *((False, each) for each in pieces)]
    assert (result.done, result.changed, result.changed_devices) == (True, ["a", "b", "c"], 3)
    assert [each.devices for each in result.counts] == [3]
    assert "2 acts" in capsys.readouterr().err


def test_one_unknown_serial_in_any_piece_prevents_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk, "MOST_SERIALS", 2)
    server = Server("c")
    result = act_in_pieces(server.send, ["a", "b", "c"], SUSPEND, dry_run=False)
    assert not server.acts
    assert (result.done, result.unknown) == (False, ["c"])


def test_a_refusal_is_explained_by_a_preview() -> None:
    server = Server("c")
    result = act_in_pieces(server.send, ["a", "c"], SUSPEND, dry_run=False)
    assert (result.done, result.changed, result.unknown) == (False, ["a"], ["c"])


def test_acts_before_a_failure_are_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bulk, "MOST_SERIALS", 1)
    server = Server(fails_at=2)
    with pytest.raises(AuthorityAwayError):
        act_in_pieces(server.send, ["a", "b", "c"], SUSPEND, dry_run=False)
    assert "1 act of 3" in capsys.readouterr().err
