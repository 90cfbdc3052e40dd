"""One ciphertext, two addresses: it is valid at one of them, whatever happens to the devices."""

import json
from typing import Any

import httpx2
import pytest

from birthmark_sma.protocol.camera_token import CameraToken
from tests.support.authorities import execute
from tests.support.cameras.camera import (
    PROVISION,
    VALIDATE,
    Camera,
    provision_body,
    wire,
)
from tests.support.cameras.colliding_tokens import collide_for
from tests.support.devices.acts import revoke_device
from tests.support.programs.running import Running, new_serial


def published_form(token: CameraToken) -> dict[str, Any]:
    """The same bytes as published clients send them."""
    sealed = token.encrypted_nuc_hash.hex()
    camera_token = wire(token) | {"ciphertext": sealed[:64], "auth_tag": sealed[64:]}
    del camera_token["encrypted_nuc_hash"]
    return {"camera_token": camera_token, "manufacturer_authority_id": "TEST"}


@pytest.mark.parametrize("address", [VALIDATE, f"{VALIDATE}/batch"])
@pytest.mark.parametrize("first", ["normative", "published"])
def test_revoking_one_device_opens_no_other_address(
    client: httpx2.Client, running: Running, address: str, first: str
) -> None:
    """Threat 42: GCM does not commit to its key, so 48 bytes can name two registered devices."""
    serials: dict[str, str] = {}

    def register(nuc_hash: bytes, derivation: str) -> list[int]:
        serials[derivation] = new_serial()
        body = provision_body(serials[derivation], nuc_hash=nuc_hash.hex())
        assert client.post(PROVISION, json=body).status_code == 200
        assignments = [table_id, table_id + 1, table_id + 2]
        with running.database() as database:
            on_sqlite = database.dialect_name == "sqlite"
            execute(
                database,
                "UPDATE registered_devices SET table_assignments = :tables"
                " WHERE device_serial = :serial",
                tables=json.dumps(assignments) if on_sqlite else assignments,
                serial=serials[derivation],
            )
        return assignments

    def ask(form: str) -> Any:
        if form == "published":
            return client.post("/validate", json=published_form(token)).json()["valid"]
        if address == VALIDATE:
            return client.post(VALIDATE, json=wire(token)).json()["validation_result"] == "PASS"
        answer = client.post(address, json={"tokens": [wire(token)]}).json()
        return answer["results"][0]["validation_result"] == "PASS"

    table_id, key = next(iter(Camera.provisioned(client, new_serial()).table_keys.items()))
    token = collide_for(key, table_id, register).token
    second = "normative" if first == "published" else "published"
    assert [ask(first), ask(second), ask(first)] == [True, False, True]
    with running.database() as database:
        revoke_device(database, serials[first], "key_compromise")
    assert [ask(first), ask(second)] == [False, False]
