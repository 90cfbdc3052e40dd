"""The example aggregation servers accept exactly the valid vectors, and what the authority passes.

Each is called as its own main program calls it, with the time and grace of the vectors: 0.
"""

import importlib.util
import json
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa

from birthmark_sma.client import AuthorityClient
from birthmark_sma.protocol.bundle import Bundle, UnsignedBundle
from birthmark_sma.protocol.camera_token import CameraToken
from tests.support.faulty import FAILED, PASSED, FaultyServer, Visit
from vectors.generator import seeded_keys

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
UNNAMED = PASSED | {"device_serial": None, "device_family": None}
SECONDS = 120


@dataclass(frozen=True)
class Case:
    """A bundle as it comes, and what is to be said of it: None where either will do."""

    name: str
    text: str
    root: str
    now: str
    passes: bool | None
    device_serial: str | None = None


def read(name: str) -> list[dict[str, Any]]:
    """The groups of a file of vectors."""
    text = (ROOT / "vectors" / f"{name}_test.json").read_text("ascii")
    groups: list[dict[str, Any]] = json.loads(text)["testGroups"]
    return groups


def of_result(test: dict[str, Any]) -> bool | None:
    return {"valid": True, "invalid": False, "acceptable": None}[test["result"]]


def bundles() -> Iterator[Case]:
    """Whole bundles, and those with each kind of signature."""
    *signed, whole = read("bundle_signature")
    for group in (whole, *signed):
        for test in group["tests"]:
            yield Case(
                f"{test['tcId']}: {test['comment']}",
                test["bundle"],
                whole["root"],
                whole["now"],
                of_result(test),
                test.get("deviceSerial"),
            )


def chains() -> Iterator[Case]:
    """Each certification path in a bundle that its device signed; other lengths are no bundles."""
    [group] = read("certificate_chain")
    for test in group["tests"]:
        if len(test["chain"]) == 2:
            yield Case(
                f"{test['tcId']}: {test['comment']}",
                bundle_of(test["chain"], test["now"]),
                group["root"],
                test["now"],
                of_result(test),
                test.get("deviceSerial"),
            )


TOKEN = CameraToken(bytes(48), 42, 234, bytes(12))


def bundle_of(chain: Sequence[str], now: str, token: CameraToken = TOKEN) -> str:
    """A bundle that the device of a chain signed, captured now."""
    leaf, intermediate = chain
    moment = datetime.fromisoformat(now)
    content = UnsignedBundle(bytes(32), token, (leaf, intermediate), moment)
    key = key_of(x509.load_pem_x509_certificate(leaf.encode()))
    return Bundle(content, sign(content.signed_bytes(), key)).to_json().decode("ascii")


def key_of(certificate: x509.Certificate) -> Any:
    """The private key of a certificate of the vectors."""
    label = "test device"
    for key in (
        seeded_keys.p256(label),
        seeded_keys.p384(label),
        seeded_keys.p521(label),
        seeded_keys.ed25519_key(label),
        seeded_keys.rsa_key(label),
        seeded_keys.rsa_key(f"weak {label}", 1_024),
    ):
        if key.public_key() == certificate.public_key():
            return key
    raise AssertionError("the vectors have a key that this test does not know")


def sign(message: bytes, key: Any) -> bytes:
    """Sign as the kind of key has it; kinds that no device has sign soundly as well."""
    if isinstance(key, rsa.RSAPrivateKey):
        return key.sign(message, padding.PKCS1v15(), hashes.SHA256())
    if isinstance(key, ec.EllipticCurvePrivateKey):
        hashed = hashes.SHA256() if key.key_size == 256 else hashes.SHA384()
        return key.sign(message, ec.ECDSA(hashed))
    signature: bytes = key.sign(message)
    return signature


# --- the two programs

Judge = Callable[[Sequence[Case], str], list[tuple[str, str, str]]]


def module_of(path: Path) -> ModuleType:
    """A program as a module, without running it."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def in_python(cases: Sequence[Case], url: str) -> list[tuple[str, str, str]]:
    program = module_of(EXAMPLES / "aggregator.py")
    with AuthorityClient(url) as authority:
        return [
            program.judge(
                authority,
                x509.load_pem_x509_certificate(case.root.encode()),
                case.text.encode(),
                now=datetime.fromisoformat(case.now),
                grace=timedelta(0),
            )
            for case in cases
        ]


def node(script: str, given: Any) -> Any:
    """What a script says of `given`, both JSON; `aggregator` is where the example is."""
    prelude = f"""
        import {{ readFileSync }} from "node:fs";
        const aggregator = {json.dumps((EXAMPLES / "aggregator.mjs").as_uri())};
        const given = JSON.parse(readFileSync(0, "utf8"));
    """
    ran = subprocess.run(
        ["node", "--input-type=module", "--eval", prelude + script],
        input=json.dumps(given),
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


def in_node(cases: Sequence[Case], url: str) -> list[tuple[str, str, str]]:
    script = """
        const { judge } = await import(aggregator);
        const told = [];
        for (const { text, root, now } of given.cases) {
          told.push(await judge(text, root, given.url, Date.parse(now), 0));
        }
        console.log(JSON.stringify(told));
    """
    sent = [{"text": each.text, "root": each.root, "now": each.now} for each in cases]
    return [tuple(each) for each in node(script, {"cases": sent, "url": url})]


@pytest.fixture(params=[in_python, in_node], ids=["python", "node"])
def judge(request: pytest.FixtureRequest) -> Judge:
    """Each program in turn."""
    program: Judge = request.param
    return program


def passing(visit: Visit) -> None:
    """An authority that discloses no device."""
    visit.answer({"results": [UNNAMED] * len(visit.tokens)})


@pytest.mark.parametrize("source", [bundles, chains])
def test_exactly_the_valid_vectors_pass(source: Callable[[], Iterator[Case]], judge: Judge) -> None:
    """Threats 1, 2 and 3 among them: what any verifier must refuse is refused before it asks."""
    cases = [*source()]
    assert {case.passes for case in cases} >= {True, False}
    with FaultyServer(passing) as authority:
        told = judge(cases, authority.url)
        asked = len(authority.visits)
    accepted = [verdict == "PASS" for _, verdict, _ in told]
    assert asked == sum(accepted)
    wrong = [
        (case.name, said)
        for case, said, passed in zip(cases, told, accepted, strict=True)
        if (passed is (not case.passes) and case.passes is not None)
        or (not passed and said[1] != "REJECTED")
        or (passed and case.device_serial and not said[2].startswith(f"{case.device_serial} ("))
    ]
    assert wrong == []


def test_exactly_the_paths_of_any_length_that_are_valid_are_verified() -> None:
    """The one for Node has no library for paths: bundles have short ones, but there are longer."""
    [group] = read("certificate_chain")
    tests = group["tests"]
    script = """
        const { verifyChain } = await import(aggregator);
        const verified = ({ chain, now }) => {
          try { return verifyChain(chain, given.root, [Date.parse(now)]); } catch { return null; }
        };
        console.log(JSON.stringify(given.tests.map(verified)));
    """
    serials = node(script, {"root": group["root"], "tests": tests})
    wrong = [
        (test["comment"], serial)
        for test, serial in zip(tests, serials, strict=True)
        if test["result"] != "acceptable" and serial != test.get("deviceSerial")
    ]
    assert wrong == []


def test_verdicts_are_taken_as_they_are_meant(judge: Judge) -> None:
    """Every rule's answer, as the contract has it: PASS for what is genuine, and else FAIL."""
    *_, whole = read("bundle_signature")
    chain = json.loads(whole["tests"][0]["bundle"])["device_certificate_chain"]
    [group] = read("verdict")
    tests = group["tests"]

    def nonce(number: int) -> bytes:
        return number.to_bytes(12, "big")

    def answer(visit: Visit) -> None:
        results = []
        for token in visit.tokens:
            test = tests[int(token["nonce"], 16)]
            verdict, told = test["verdict"], test["toldToCaller"]
            shape = UNNAMED if verdict == "PASS" else FAILED
            results.append(shape if told is None else {"validation_result": verdict, "error": told})
        visit.answer({"results": results})

    cases = [
        Case(
            test["comment"],
            bundle_of(
                chain,
                whole["now"],
                CameraToken(bytes(48), test["tableId"], test["keyIndex"], nonce(number)),
            ),
            whole["root"],
            whole["now"],
            passes=test["verdict"] == "PASS",
        )
        for number, test in enumerate(tests)
    ]
    with FaultyServer(answer) as authority:
        told = judge(cases, authority.url)
    assert [verdict for _, verdict, _ in told] == [test["verdict"] for test in tests]
