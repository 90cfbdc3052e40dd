"""Measure `sma provision-batch` with an EC P-256 issuer."""

import json
import subprocess
import sys
import time
from pathlib import Path

from bench import sites
from bench.parts.stage import Stage
from birthmark_sma.pki.keys.ca_keys import CaKeyType
from tests.support.cameras.camera import provision_body
from tests.support.programs.running import query

NAME = "provisioning in bulk, ec-p256 issuer"


def measure(stage: Stage) -> None:
    """Provision a file of devices with the command line, once in each round."""
    count = stage.options.bulk_devices
    stage.say(f"making {count:,} device keys")
    devices = stage.folder / "devices.jsonl"
    with devices.open("w", encoding="utf-8") as file:
        for number in range(count):
            file.write(json.dumps(provision_body(f"bulk-{number:08}")) + "\n")
    for number in range(stage.options.rounds):
        _measure(stage, devices, number)


def _measure(stage: Stage, devices: Path, number: int) -> None:
    """Run the command on a new authority, because a device can be provisioned only once."""
    count = stage.options.bulk_devices
    name = f"bulk_{number}"
    site = sites.create(stage.folder, stage.postgres, name, key_type=CaKeyType.EC_P256)
    results, refused = stage.folder / f"{name}.jsonl", stage.folder / f"{name}-refused.jsonl"
    began = time.perf_counter()
    done = subprocess.run(
        [
            *(sys.executable, "-m", "birthmark_sma", "provision-batch", str(devices)),
            *("--output", str(results), "--refused", str(refused)),
        ],
        env=site.environ,
        capture_output=True,
        text=True,
        check=False,
    )
    elapsed = time.perf_counter() - began
    if done.returncode != 0:
        raise RuntimeError(f"sma provision-batch ended with {done.returncode}: {done.stderr}")
    [(registered,)] = query(site.database_url, "SELECT count(*) FROM registered_devices")
    if registered != count:
        stage.report.faults.append(f"{NAME}: {registered} of {count} devices are registered")
    stage.report.read(NAME, "devices/s", count / elapsed)
    stage.say(f"{NAME}: {count / elapsed:,.0f} devices/s")
