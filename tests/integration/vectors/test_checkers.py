"""The checkers in other languages: they agree with the vectors, the server, and the camera."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest

from birthmark_sma.device import UNSEALED, Enrolment, start_camera, state
from birthmark_sma.device.state_directory import PrivateDirectory
from tests.support.cameras.camera import VALIDATE, Camera, wire
from tests.support.cameras.checkers import LANGUAGES, SOURCES, VECTORS, Checker, build
from tests.support.programs.running import Running, new_serial


@pytest.fixture(params=LANGUAGES)
def checker(request: pytest.FixtureRequest) -> Checker:
    """The checker of each language."""
    return build(request.param)


def test_it_agrees_with_every_vector(checker: Checker) -> None:
    ran = checker.check()
    assert ran.returncode == 0, ran.stdout + ran.stderr
    counted = dict(re.findall(r"(\w+): (\d+) tests", ran.stdout))
    assert counted == {
        file.name.removesuffix("_test.json"): str(number)
        for file in VECTORS.glob("*_test.json")
        if (number := _judged_by(checker.language, json.loads(file.read_text("ascii")))) > 0
    }


NOT_JUDGED = {
    "javascript": {"Response", "CertificateChain", "Bundle"},
    "c": {"Response", "Sealed"},
}
"""Which groups of tests a language leaves to the others: docs/vectors.md says why."""


def test_the_guide_says_what_each_judges() -> None:
    guide = (VECTORS.parent / "docs" / "vectors.md").read_text("utf-8")
    heading, rows = guide.split("| file, kind of test ")[1].split("\n", 1)
    languages = re.findall(r"\w+", heading.lower())
    for file in VECTORS.glob("*_test.json"):
        for group in json.loads(file.read_text("ascii"))["testGroups"]:
            kind = group["type"]
            [said] = re.findall(rf"^\| `{file.name}`(?:, {kind})? \|(.*)$", rows, re.MULTILINE)
            judges = ["no" if kind in NOT_JUDGED.get(each, ()) else "yes" for each in languages]
            assert re.findall(r"\w+", said) == judges, kind


def _judged_by(language: str, document: dict[str, Any]) -> int:
    groups = document["testGroups"]
    left = NOT_JUDGED.get(language, set())
    return sum(len(group["tests"]) for group in groups if group["type"] not in left)


Change = Callable[[dict[str, Any]], None]


def _wrong_result(document: dict[str, Any]) -> None:
    test = next(
        test
        for group in document["testGroups"]
        for test in reversed(group["tests"])
        if test["result"] == "invalid"
    )
    test["result"] = "valid"


def _wrong_value(name: str) -> Change:
    def change(document: dict[str, Any]) -> None:
        test = document["testGroups"][0]["tests"][0]
        test[name] = test[name][:-1] + ("0" if test[name][-1] != "0" else "1")

    return change


def _wrong_reason(document: dict[str, Any]) -> None:
    document["testGroups"][0]["tests"][-1]["reason"] = "genuine"


def _accepted_as(result: str, name: str) -> Change:
    """What is sound, said to be invalid or acceptable, and to give something else."""

    def change(document: dict[str, Any]) -> None:
        test = document["testGroups"][0]["tests"][1]
        test["result"] = result
        test[name] = test[name][:-1] + ("0" if test[name][-1] != "0" else "1")

    return change


def _other_secrets(document: dict[str, Any]) -> None:
    [test] = [each for each in document["testGroups"][1]["tests"] if each["tcId"] == SEALED]
    test |= {"result": "invalid", "secrets": test["secrets"] | {"nuc_hash": "00" * 32}}


def _other_label(document: dict[str, Any]) -> None:
    document["testGroups"][1]["deviceLabel"] += "?"


def _other_urn(document: dict[str, Any]) -> None:
    document["testGroups"][0]["tests"][2]["deviceUrn"] += "?"


SEALED = next(
    group["tests"][0]["tcId"]
    for group in json.loads((VECTORS / "provisioning_response_test.json").read_text())["testGroups"]
    if group["type"] == "Sealed"
)
SPOILT: dict[str, tuple[Change, ...]] = {
    "key_derivation": (_wrong_value("derivedKey"),),
    "camera_token": (_wrong_value("nucHash"), _accepted_as("invalid", "nucHash"), _wrong_result),
    "provisioning_response": (_other_secrets,),
    "certificate_chain": (_accepted_as("acceptable", "deviceSerial"), _other_urn),
    "bundle_signature": (_wrong_result, _accepted_as("invalid", "signedBytes"), _other_label),
    "renewal_proof": (_wrong_result, _accepted_as("invalid", "signedBytes"), _other_label),
    "verdict": (_wrong_reason,),
}


def _found(checker: Checker, vectors: Path) -> set[tuple[str, int]]:
    """The tests that came out otherwise than the files say."""
    ran = checker.check(vectors)
    assert ran.returncode == 1, ran.stdout + ran.stderr
    return {
        (name, int(number))
        for name, number in re.findall(r"^(\w+) (\d+): .*: \w+$", ran.stdout, re.MULTILINE)
    }


def test_it_finds_what_is_wrong(checker: Checker, tmp_path: Path) -> None:
    """A checker that always says yes is none."""
    spoilt = tmp_path / "vectors"
    spoilt.mkdir()
    for file in VECTORS.glob("*_test.json"):
        document = json.loads(file.read_text("ascii"))
        for change in SPOILT.get(file.name.removesuffix("_test.json"), ()):
            change(document)
        (spoilt / file.name).write_text(json.dumps(document), "ascii")
    wrong = {("key_derivation", 1), ("camera_token", 1), ("camera_token", 2), ("camera_token", 45)}
    wrong |= {("certificate_chain", 2), ("certificate_chain", 3), ("verdict", 72)}
    wrong |= {("bundle_signature", each) for each in (2, 8, 9)}
    wrong |= {("renewal_proof", each) for each in (2, 11, 12, 13)}
    wrong |= {("provisioning_response", SEALED)}
    if checker.language == "javascript":
        wrong -= {("certificate_chain", 2), ("certificate_chain", 3)}
    if checker.language == "c":
        wrong.remove(("provisioning_response", SEALED))
    assert _found(checker, spoilt) == wrong


TAGLESS = {
    "python": (
        "birthmark.py",
        "decrypt(nonce, sealed, None)",
        "encrypt(nonce, sealed[:32], None)[:32]",
    ),
    "javascript": (
        "birthmark.mjs",
        "[decipher.update(text), decipher.final()]",
        "[decipher.update(text)]",
    ),
    "c": ("birthmark.c", "EVP_DecryptFinal_ex(cipher, nuc_hash + size, &rest) > 0", "rest == 0"),
}


@pytest.mark.parametrize("language", TAGLESS)
def test_it_finds_an_implementation_that_verifies_no_tag(language: str, tmp_path: Path) -> None:
    """Counter mode alone opens every token, to something: all that are altered are found."""
    sources = tmp_path / "sources"
    shutil.copytree(SOURCES / language, sources / language)
    name, sound, careless = TAGLESS[language]
    file = sources / language / name
    text = file.read_text("utf-8")
    assert text.count(sound) == 1
    file.write_text(text.replace(sound, careless), "utf-8")
    document = json.loads((VECTORS / "camera_token_test.json").read_text("ascii"))
    altered = {
        ("camera_token", test["tcId"])
        for test in document["testGroups"][0]["tests"]
        if "Altered" in test["flags"]
    }
    assert len(altered) == 9
    found = _found(build(language, sources), VECTORS)
    assert {each for each in found if each[0] == "camera_token"} == altered


def test_its_tokens_pass_on_the_server(checker: Checker, running: Running) -> None:
    """And one that was altered fails, so that it is not the server that says yes to all."""
    with running.client() as client:
        camera = Camera.provisioned(client, new_serial())
        for index, (table, key) in enumerate(camera.table_keys.items()):
            token = checker.seal(camera.nuc_hash, key, table, (0, 500, 999)[index])
            assert token == checker_shape(token)
            answer = client.post(VALIDATE, json=token).json()
            assert answer["validation_result"] == "PASS"
            assert answer["device_serial"] == camera.serial
            altered = token | {"key_index": 7}
            assert client.post(VALIDATE, json=altered).json()["validation_result"] == "FAIL"


def checker_shape(token: dict[str, Any]) -> dict[str, Any]:
    """Exactly the fields of the wire, in lower case."""
    fields = ("encrypted_nuc_hash", "table_id", "key_index", "nonce")
    return {
        name: token[name].lower() if isinstance(token[name], str) else token[name]
        for name in fields
    }


def test_it_never_seals_under_one_nonce_twice(checker: Checker) -> None:
    tokens = [checker.seal(bytes(32), bytes(32), 1, 1) for _ in range(5)]
    assert len({token["nonce"] for token in tokens}) == 5


@pytest.fixture(scope="module")
def captured(
    running_once: Running, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], bytes, bytes]:
    """A camera token of the Python device library, its master key, and the NUC hash inside."""
    place = tmp_path_factory.mktemp("camera") / "camera"
    enrolment = Enrolment(running_once.server.url, new_serial(), "Test")
    with (
        httpx2.Client(trust_env=False) as client,
        start_camera(place, sealing=UNSEALED, enrolment=enrolment, client=client) as camera,
    ):
        token = camera.capture(b"a picture").content.camera_token
    kept = state.load(PrivateDirectory(place), UNSEALED)
    assert isinstance(kept, state.Identity)
    master_key = bytes.fromhex(kept.table_keys[str(token.table_id)])
    return wire(token), master_key, bytes.fromhex(kept.nuc_hash)


def test_it_opens_what_the_python_camera_sealed(
    checker: Checker, captured: tuple[dict[str, Any], bytes, bytes]
) -> None:
    token, master_key, nuc_hash = captured
    assert checker.open(token, master_key) == nuc_hash
    assert checker.open(token, bytes(32)) is None
    assert checker.open(token | {"key_index": (token["key_index"] + 1) % 1_000}, master_key) is None
    assert checker.open(token | {"nonce": token["nonce"][:-2]}, master_key) is None
    assert checker.open(token | {"nonce": "zz" * 12}, master_key) is None
