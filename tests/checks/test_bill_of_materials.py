"""The bill of materials and the checksums of a release."""

import hashlib
import json
from importlib.resources import files
from pathlib import Path

import jsonschema_rs

from birthmark_sma import __version__
from checks.bill_of_materials import LOCK, make_bill, read_lock, write_checksums

TEXT = LOCK.read_text(encoding="utf-8")


def test_the_bill_follows_the_schema_of_cyclonedx() -> None:
    schemas = files("cyclonedx.schema") / "_res"
    schema = json.loads((schemas / "bom-1.6.SNAPSHOT.schema.json").read_text("utf-8"))
    others = {}
    for name in ("spdx", "jsf-0.82"):
        others[f"http://cyclonedx.org/schema/{name}.SNAPSHOT.schema.json"] = json.loads(
            (schemas / f"{name}.SNAPSHOT.schema.json").read_text("utf-8")
        )
    registry = jsonschema_rs.Registry(list(others.items()))
    jsonschema_rs.validator_for(schema, registry=registry).validate(json.loads(make_bill(TEXT)))


def test_the_bill_names_everything_that_is_locked_and_vendored() -> None:
    bill = json.loads(make_bill(TEXT))
    purls = {component["purl"] for component in bill["components"]}
    for package in read_lock(TEXT):
        assert f"pkg:pypi/{package.name}@{package.version}" in purls
    locked = [line for line in TEXT.splitlines() if line[:1].isalnum()]
    assert len(locked) == len(read_lock(TEXT))
    assert {"htmx.org", "swagger-ui-dist"} <= {each["name"] for each in bill["components"]}
    assert bill["metadata"]["component"]["version"] == __version__
    [own] = [each for each in bill["dependencies"] if each["ref"] == "birthmark-sma"]
    assert any(ref.startswith("pkg:pypi/fastapi@") for ref in own["dependsOn"])


def test_a_package_of_a_lock() -> None:
    text = (
        "one==1.0 ; sys_platform == 'win32' \\\n"
        f"    --hash=sha256:{'a' * 64} \\\n    --hash=sha256:{'b' * 64}\n"
        "    # via\n    #   birthmark-sma (pyproject.toml)\n    #   two\n"
        f"two==2.0.post1 \\\n    --hash=sha256:{'c' * 64}\n"
        "    # via birthmark-sma (pyproject.toml)\n"
    )
    one, two = read_lock(text)
    assert one.marker == "sys_platform == 'win32'"
    assert (one.hashes, two.hashes) == (["a" * 64, "b" * 64], ["c" * 64])
    assert (one.needed_by, two.needed_by) == (["birthmark-sma", "two"], ["birthmark-sma"])


def test_the_checksums_are_those_of_the_files(tmp_path: Path) -> None:
    (tmp_path / "a.whl").write_bytes(b"wheel")
    write_checksums(tmp_path)
    expected = f"{hashlib.sha256(b'wheel').hexdigest()}  a.whl\n"
    assert (tmp_path / "SHA256SUMS").read_text() == expected
    write_checksums(tmp_path)
    assert (tmp_path / "SHA256SUMS").read_text() == expected
