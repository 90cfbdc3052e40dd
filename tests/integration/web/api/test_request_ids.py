"""Every answer to a camera token has a request id, by which its audit rows are found."""

import secrets
from typing import Any

import httpx2
import pytest

from birthmark_sma.authority.validation.validation_details import ValidationDetails, find_request
from birthmark_sma.errors import UnknownValidationError
from tests.support.cameras.camera import VALIDATE, Camera, wire
from tests.support.cameras.published_camera import PublishedCamera
from tests.support.programs.running import Running, new_serial

BATCH = f"{VALIDATE}/batch"


def found_by(running: Running, response: httpx2.Response) -> list[ValidationDetails]:
    """Return what an operator finds by the id of a response."""
    with running.database() as database:
        return find_request(database, response.headers["x-request-id"])


def bodies(client: httpx2.Client) -> dict[str, Any]:
    """Return a body for each endpoint that validates camera tokens, which all PASS."""
    camera = Camera.provisioned(client, new_serial())
    published = PublishedCamera(camera.serial, camera.nuc_hash, camera.table_keys)
    return {
        VALIDATE: wire(camera.token()),
        BATCH: {"tokens": [wire(camera.token())]},
        "/validate": published.body(),
        "/validate-legacy": published.legacy_body()[0],
    }


@pytest.mark.parametrize("given", [None, "an-id/of:the=caller,1@2+3~4", "x" * 128])
def test_each_endpoint_records_the_id_of_its_answer(
    client: httpx2.Client, running: Running, given: str | None
) -> None:
    for path, body in bodies(client).items():
        unique = None if given is None else f"{secrets.token_hex(8)}{given}"[:128]
        headers = {} if unique is None else {"X-Request-ID": unique}
        response = client.post(path, json=body, headers=headers)
        assert response.status_code == 200, path
        if unique is not None:
            assert response.headers["x-request-id"] == unique
        [found] = found_by(running, response)
        assert found.entry.validation_result == "PASS", path
        assert found.entry.batch_position == (0 if path == BATCH else None)
        assert 0 < (found.entry.waited_us or 0) < 60_000_000
        assert found.story is not None
        assert found.story.first_seen_at == found.entry.validated_at
        assert found.story.first_caller == "ip:127.0.0.1"


def test_an_address_that_is_told_to_the_caller_has_its_row(
    client: httpx2.Client, running: Running
) -> None:
    """A 400 with FAIL is a verdict, and its problem document has the id, too."""
    camera = Camera.provisioned(client, new_serial())
    response = client.post(VALIDATE, json=wire(camera.token()) | {"table_id": 2**31 - 1})
    assert response.status_code == 400
    assert response.json()["request_id"] == response.headers["x-request-id"]
    [found] = found_by(running, response)
    assert found.entry.reason == "unknown_table"


def test_a_row_of_a_batch_has_its_position(client: httpx2.Client, running: Running) -> None:
    """Malformed elements have no row, and move no position."""
    camera = Camera.provisioned(client, new_serial())
    good = [camera.token(key_index=n) for n in range(4)]
    tokens: list[Any] = [wire(each) for each in good]
    tokens.insert(1, {"table_id": "no"})
    tokens.insert(4, None)
    response = client.post(BATCH, json={"tokens": tokens})
    assert response.status_code == 200
    found = found_by(running, response)
    rows = [(each.entry.batch_position, each.entry.key_index) for each in found]
    assert rows == [(0, 0), (2, 1), (3, 2), (5, 3)]


def test_a_refused_request_has_no_row(client: httpx2.Client, running: Running) -> None:
    """Nor has a batch without a well-formed token."""
    refused: dict[str, Any] = {VALIDATE: {}, BATCH: {"tokens": [{}]}, "/validate": {}}
    for path, body in refused.items():
        with pytest.raises(UnknownValidationError, match="server's log"):
            found_by(running, client.post(path, json=body))


def test_requests_with_the_same_id_are_all_found(client: httpx2.Client, running: Running) -> None:
    """The newest first: a repeated token, and another one."""
    camera = Camera.provisioned(client, new_serial())
    named = {"X-Request-ID": f"same-{secrets.token_hex(8)}"}
    token = wire(camera.token())
    for body in (token, token, wire(camera.token())):
        response = client.post(VALIDATE, json=body, headers=named)
    found = found_by(running, response)
    assert [each.entry.repeat for each in found] == [None, "replayed", None]
    assert found[1].repeat is not None
    assert found[1].story == found[2].story
    assert found[1].story is not None
    assert [each.times for each in found[1].story.resubmissions] == [1]
