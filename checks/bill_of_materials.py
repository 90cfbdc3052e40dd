"""Write a bill of materials (CycloneDX) and checksums beside the built packages: `make dist`.

The lock of the server, and the libraries for browsers that the package contains, are the source.
Licences come from the packages that are installed here. Nothing is downloaded.
"""

import hashlib
import importlib.metadata
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model import HashAlgorithm, HashType, Property
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL

from birthmark_sma import __version__

ROOT = Path(__file__).parents[1]
LOCK = ROOT / "requirements" / "run.lock"
_NPM_NAMES = {"htmx": "htmx.org", "swagger-ui": "swagger-ui-dist"}
_PACKAGE = re.compile(r"^(?P<name>[a-z0-9-]+)==(?P<version>[^ ;]+)(?: ; (?P<marker>.+))? \\$")
_OWN = "birthmark-sma"


@dataclass
class Locked:
    """A package of a lock: its name, version and marker, its files' SHA-256, and who needs it."""

    name: str
    version: str
    marker: str | None
    hashes: list[str] = field(default_factory=list)
    needed_by: list[str] = field(default_factory=list)


def read_lock(text: str) -> list[Locked]:
    """Return the packages of a lock as uv writes it."""
    packages: list[Locked] = []
    for line in text.splitlines():
        if found := _PACKAGE.match(line):
            packages.append(Locked(found["name"], found["version"], found["marker"]))
        elif digest := re.search(r"--hash=sha256:([0-9a-f]{64})", line):
            packages[-1].hashes.append(digest[1])
        elif line.startswith("    #") and (need := line.lstrip(" #").removeprefix("via").strip()):
            packages[-1].needed_by.append(need.split(" ")[0])
    return packages


def _licences(name: str) -> Iterator[str]:
    try:
        found = importlib.metadata.metadata(name)
    except importlib.metadata.PackageNotFoundError:  # it is not needed on this kind of machine
        return
    if "License-Expression" in found:
        yield found["License-Expression"]


def _component(package: Locked) -> Component:
    url = PackageURL("pypi", name=package.name, version=package.version)
    marker = [] if package.marker is None else [Property(name="marker", value=package.marker)]
    return Component(
        type=ComponentType.LIBRARY,
        name=package.name,
        version=package.version,
        purl=url,
        bom_ref=str(url),
        licenses=[LicenseFactory().make_from_string(each) for each in _licences(package.name)],
        # One for each file that the lock accepts: the wheels of all machines, and the source.
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=each) for each in package.hashes],
        properties=marker,
    )


def _browser_libraries() -> Iterator[Component]:
    for file in sorted((ROOT / "src").rglob("static/vendor/*/VERSION")):
        name = _NPM_NAMES.get(file.parent.name, file.parent.name)
        version = file.read_text(encoding="utf-8").strip()
        url = PackageURL("npm", name=name, version=version)
        yield Component(
            type=ComponentType.LIBRARY, name=name, version=version, purl=url, bom_ref=str(url)
        )


def make_bill(lock: str) -> str:
    """Return the bill of materials as JSON, from the text of a lock."""
    own = Component(
        type=ComponentType.APPLICATION,
        name=_OWN,
        version=__version__,
        bom_ref=_OWN,
        licenses=[LicenseFactory().make_from_string("Apache-2.0")],
    )
    bill = Bom()
    bill.metadata.component = own
    packages = read_lock(lock)
    components = {package.name: _component(package) for package in packages}
    for component in (*components.values(), *_browser_libraries()):
        bill.components.add(component)
    for package in packages:
        for need in package.needed_by:
            parent = own if need == _OWN else components[need]
            bill.register_dependency(parent, [components[package.name]])
    bill.register_dependency(own, _browser_libraries())
    return JsonV1Dot6(bill).output_as_string(indent=2)


def write_checksums(folder: Path) -> None:
    """Write SHA256SUMS, which `sha256sum --check` reads, for the files of a folder."""
    lines = [
        f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n"
        for file in sorted(folder.iterdir())
        if file.name not in {"SHA256SUMS", ".gitignore"}
    ]
    (folder / "SHA256SUMS").write_text("".join(lines), encoding="utf-8")


def main(folder: Path) -> None:
    """Write both files into a folder, and the lock as a file for `pip install -r`."""
    lock = LOCK.read_text(encoding="utf-8")
    stem = f"birthmark_sma-{__version__}"
    (folder / f"{stem}.cdx.json").write_text(make_bill(lock) + "\n", encoding="utf-8")
    (folder / f"{stem}-requirements.txt").write_text(lock, encoding="utf-8")
    write_checksums(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
