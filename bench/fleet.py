"""Fill a database with devices without issuing certificates, and make camera tokens of them.

Validation reads only a device's NUC hash, tables and status, so a million devices can share the
text of one certificate. All other columns are as provisioning writes them. Random values come from
a seed, so every run has the same fleet. Only for benchmarks: the certificates do not match.
"""

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice

import psycopg

from birthmark_sma.authority.authority import Authority
from birthmark_sma.authority.devices.store import Device, add_devices
from birthmark_sma.protocol import camera_token
from birthmark_sma.protocol.key_table import assign_tables
from birthmark_sma.protocol.verdict import DeviceStatus
from tests.support.cameras.camera import new_key, public_pem, wire

FAMILY = "Bench"
_CHUNK = 5_000


@dataclass(frozen=True, slots=True)
class FleetCamera:
    """The data that make camera tokens of one device."""

    device_serial: str
    nuc_hash: bytes
    tables: tuple[int, ...]


def fill(authority: Authority, count: int, *, keep: int) -> list[FleetCamera]:
    """Register `count` devices. Return `keep` of them, spread evenly."""
    kept: list[FleetCamera] = []
    devices = _devices(authority, count, min(keep, count), kept)
    while chunk := list(islice(devices, _CHUNK)):
        with authority.database.write() as transaction:
            add_devices(transaction, chunk)
    if authority.database.dialect_name == "postgresql":
        url = authority.settings.resolved_database_url
        with psycopg.connect(url, autocommit=True) as connection:
            # Now and not by autovacuum, which could run during a measurement.
            connection.execute("VACUUM (ANALYZE) registered_devices")
    return kept


def bodies(
    authority: Authority, cameras: Sequence[FleetCamera], count: int, *, seed: int = 2
) -> list[bytes]:
    """Return `count` genuine camera tokens of the cameras in turn, as JSON request bodies."""
    chance = random.Random(seed)
    made = []
    for number in range(count):
        camera = cameras[number % len(cameras)]
        table_id = chance.choice(camera.tables)
        key_index = chance.randrange(authority.table_sizes.keys_per_table)
        token = camera_token.seal(
            camera.nuc_hash,
            key=authority.table_cache.keys.current[table_id].derive(key_index),
            table_id=table_id,
            key_index=key_index,
            nonce=chance.randbytes(camera_token.NONCE_BYTES),
        )
        made.append(json.dumps(wire(token)).encode())
    return made


def batches(singles: Sequence[bytes], size: int) -> list[bytes]:
    """Return bodies of batch requests with `size` tokens each. The rest is left out."""
    return [
        b'{"tokens": [%s]}' % b", ".join(singles[start : start + size])
        for start in range(0, len(singles) - size + 1, size)
    ]


def _devices(
    authority: Authority, count: int, keep: int, kept: list[FleetCamera]
) -> Iterator[Device]:
    """Yield the devices of the fleet. Append the cameras to keep to `kept`."""
    index = authority.secrets.nuc_hash_index
    chance = random.Random(1)
    certificate = authority.issuer.chain[0]
    public_key = public_pem(new_key())
    now = datetime.now(UTC)
    for number in range(count):
        nuc_hash = chance.randbytes(32)
        tables = assign_tables(authority.table_sizes, chance.sample)
        serial = f"bench-{number:08}"
        if number * keep // count != (number + 1) * keep // count:
            kept.append(FleetCamera(serial, nuc_hash, tables))
        yield Device(
            device_serial=serial,
            nuc_hash=index.of(nuc_hash),
            table_assignments=tables,
            device_certificate=certificate,
            certificate_serial=chance.randbytes(20).hex(),
            device_public_key=public_key,
            public_key_fingerprint=chance.randbytes(32),
            device_family=FAMILY,
            app_version=None,
            status=DeviceStatus.ACTIVE,
            provisioning_id=f"BENCH-{number:08}",
            provisioned_at=now,
            table_epochs=(0,) * len(tables),
        )
