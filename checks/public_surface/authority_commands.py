"""The commands that `authority_process` runs, and the shapes of their output and files.

All commands work in the current directory. Every command with --json is here, with two
exceptions: commands that run until they are stopped or need a server (serve, simulate), and
`secrets rotate`, which waits 4 seconds.
"""

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import typer

from birthmark_sma.authority.access.store import KeyScope
from checks.public_surface import places
from checks.public_surface.text import find_shape

TOKEN = {
    "encrypted_nuc_hash": "00" * 48,
    "table_id": 0,
    "key_index": 0,
    "nonce": "00" * 12,
}
"""A well-formed camera token that no device made."""

_SCOPES = tuple(each.value for each in KeyScope)
_SERIAL = "CAMERA-1"
_FOLDER = ["--data-dir", "data"]
_KEK = ["--kek-file", "key"]
_SMALL = ["--ca-key-type", "ec-p256", "--tables", "50", "--keys-per-table", "4"]
_BATCH = [{"device_serial": "BATCH-1", "device_family": "Pi"}, {"device_serial": "BATCH-1"}]
_BATCH_OPTIONS = ["--output", "results.jsonl", "--make-keys", "--processes", "1"]
_sma = typer.main.get_command(places.command_line)

# The order matters: a restore needs the backup, and a revoked key cannot be rotated.
_AFTER: dict[str, list[str]] = {
    "version": [],
    "ca show": _FOLDER,
    "ca list": _FOLDER,
    "ca export": ["--certificates-only", "--output-dir", "ca", *_FOLDER],
    "ca publish-crl": [*_FOLDER, *_KEK],
    "devices list": _FOLDER,
    "devices show": [_SERIAL, *_FOLDER],
    "devices flagged": _FOLDER,
    "doctor": [*_FOLDER, *_KEK],
    "history partitions": _FOLDER,
    "history prune": ["--older-than-days", "1", "--yes", *_FOLDER],
    "keys rotate": ["a-validate", *_FOLDER],
    "keys revoke": ["a-validate", *_FOLDER],
    "migrate": _FOLDER,
    "provision-batch": ["batch.jsonl", *_BATCH_OPTIONS, *_FOLDER, *_KEK],
    "secrets check": [*_FOLDER, *_KEK],
    "tables populate": [*_FOLDER, *_KEK],
    "tables show": _FOLDER,
    "validate": ["token.json", *_FOLDER, *_KEK],
    "backup": ["saved", *_FOLDER],
    "restore": ["saved", "--data-dir", "restored", *_KEK],
    "secrets forget-previous": ["--yes", *_FOLDER],
    "ca rotate": ["--yes", *_FOLDER, *_KEK],
    "ca roll-root": ["--yes", *_FOLDER, *_KEK],
    "ca compromised": ["intermediate", "--yes", *_FOLDER, *_KEK],
}


def run_commands_before() -> tuple[dict[str, Any], dict[str, str]]:
    """Create the authority. Return the shapes of the outputs, and an access key for each scope."""
    Path("key").touch(0o600)
    Path("key").write_bytes(bytes(range(32)))
    Path("token.json").write_text(json.dumps(TOKEN))
    Path("batch.jsonl").write_text("".join(json.dumps(line) + "\n" for line in _BATCH))
    outputs, keys = {"init": find_shape(_run("init", *_FOLDER, *_KEK, *_SMALL))}, {}
    for scope in _SCOPES:
        created = _run("keys create", f"a-{scope}", "--scope", scope, *_FOLDER)
        keys[scope] = created["key"]
        outputs["keys create"] = find_shape(created)
    outputs["keys list"] = find_shape(_run("keys list", *_FOLDER))
    provisioned = _run("provision", _SERIAL, "--output-dir", "files", *_FOLDER, *_KEK)
    return outputs | {"provision": find_shape(provisioned)}, keys


def run_commands_after() -> dict[str, Any]:
    """Return the shapes of the other commands' outputs, and of the files that they wrote."""
    outputs = {command: _run(command, *arguments) for command, arguments in _AFTER.items()}
    # The machine decides which findings have a remedy, so only the names of the fields are kept.
    outputs["doctor"]["findings"] = [dict.fromkeys(outputs["doctor"]["findings"][0], "")]
    shapes = {command: find_shape(output) for command, output in outputs.items()}
    for path in (Path("files/provisioning_data.json"), Path("saved/manifest.json")):
        shapes[f"file {path.name}"] = find_shape(json.loads(path.read_text()))
    for name in ("results.jsonl", "results.refused.jsonl"):
        lines = Path(name).read_text().splitlines()
        shapes[f"file {name}"] = find_shape([json.loads(line) for line in lines])
    for folder in ("files", "saved", "ca"):
        shapes[f"files in {folder}"] = sorted(path.name for path in Path(folder).iterdir())
    return shapes


def _run(command: str, *arguments: str) -> Any:
    """Run a command of `sma` with --json in this process and return its parsed output.

    Exit code 1 is allowed, because `doctor` and `validate` use it for a negative result. The output
    is one JSON value, or one on each line.
    """
    with contextlib.redirect_stdout(io.StringIO()) as out:
        try:
            _sma.main([*command.split(), *arguments, "--json"], standalone_mode=False)
        except SystemExit as ended:
            if ended.code not in {None, 0, 1}:
                raise
    text = out.getvalue()
    try:
        return json.loads(text)
    except ValueError:
        return [json.loads(line) for line in text.splitlines()]
