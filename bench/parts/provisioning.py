"""Measure provisioning over HTTP, and the bare signing rate of one core with the issuer's key."""

import json

from bench import bare, connections
from bench.parts.stage import Filled, Stage
from birthmark_sma.pki.keys.ca_keys import CaKeyType
from birthmark_sma.web.api.provision import PATH
from tests.support.cameras.camera import provision_body

_CONNECTIONS = 32
_MOST_PER_SECOND = 1_500
"""Limit for the number of devices of a round. An EC key signs far faster than devices can be
provisioned, so without it a round would take too long."""


def measure(stage: Stage) -> None:
    """Provision devices, each with its own key, under an RSA and an EC issuer, in turn."""
    sites = {
        CaKeyType.RSA_4096: stage.main(),
        CaKeyType.EC_P256: stage.filled("ec_p256", devices=0, key_type=CaKeyType.EC_P256),
    }
    for number in range(stage.options.rounds):
        for key_type, filled in sites.items():
            _measure(stage, key_type, filled, number)


def provisioned_name(key_type: CaKeyType) -> str:
    """Return the name of the reading of devices provisioned per second."""
    return f"provisioning, {key_type.value} issuer"


def signing_name(key_type: CaKeyType) -> str:
    """Return the name of the reading of bare signatures per second."""
    return f"bare signing, {key_type.value}, one core"


def _measure(stage: Stage, key_type: CaKeyType, filled: Filled, number: int) -> None:
    seconds = stage.options.seconds
    with filled.site.opened() as authority:
        signing = bare.signatures_per_second(authority.issuer.signer, seconds / 2)
    count = round(min(signing, _MOST_PER_SECOND) * seconds)
    bodies = [
        json.dumps(provision_body(f"round-{number}-{each:06}")).encode() for each in range(count)
    ]
    with filled.site.serve() as server:
        connections.closed(
            server.url + PATH,
            [json.dumps(provision_body(f"warm-up-{number}-{each}")).encode() for each in range(50)],
            connections=_CONNECTIONS,
            check=_complete,
        )
        load = connections.closed(
            server.url + PATH, bodies, connections=_CONNECTIONS, check=_complete
        )
    rate = load.answers / load.seconds
    stage.report.read(signing_name(key_type), "signatures/s", signing)
    stage.report.read(provisioned_name(key_type), "devices/s", rate)
    stage.report.read(f"{provisioned_name(key_type)}: p99", "ms", load.p99_ms)
    if load.wrong:
        stage.report.faults.append(f"{provisioned_name(key_type)}: {load.wrong} were refused")
    stage.say(f"{provisioned_name(key_type)}: {rate:,.0f} devices/s, bare {signing:,.0f}")


def _complete(body: bytes) -> bool:
    return b'"device_certificate"' in body and b'"table_keys"' in body
