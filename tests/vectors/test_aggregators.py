"""The example aggregation servers accept exactly the valid vectors, and what the authority passes.

Each is called as its own main program calls it, at the time of the vectors. What the vectors leave
out is made here: spellings, certificates, and the grace for cameras that were offline.
"""

import importlib.util
import json
import os
import re
import subprocess
import sys
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from io import BytesIO
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.x509.name import _ASN1Type
from cryptography.x509.oid import NameOID

from birthmark_sma.client import AuthorityClient
from birthmark_sma.pki.keys.ca_keys import Signer
from birthmark_sma.pki.keys.key_policy import DeviceKey
from birthmark_sma.pki.profiles import key_usage
from birthmark_sma.protocol.bundle import MAX_BUNDLE_BYTES, Bundle, UnsignedBundle
from birthmark_sma.protocol.camera_token import CameraToken
from tests.support.http.faulty_server import FAILED, PASSED, FaultyServer, Visit
from vectors.generator import seeded_keys
from vectors.generator.authorities import (
    CLIENT_AUTH,
    NOT_A_CA,
    NOW,
    SERVER_AUTH,
    authority,
    der,
    hand_made,
    pem,
)

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
    grace: timedelta = timedelta(0)


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


def spellings() -> Iterator[Case]:
    """A bundle in spellings of JSON that mean the same to some parsers, and not to others."""
    *_, group = read("bundle_signature")
    good = group["tests"][0]["bundle"]
    fields = json.loads(good)
    token, (leaf, intermediate) = fields["camera_token"], fields["device_certificate_chain"]

    def signed(**changes: Any) -> str:
        """Sign what no `UnsignedBundle` would be, so that it is refused for its form alone."""
        content = {name: value for name, value in fields.items() if name != "signature"} | changes
        text = json.dumps(content, sort_keys=True, separators=(",", ":"))
        signature = sign(b"birthmark-bundle-v1\0" + text.encode(), seeded_keys.p256("test device"))
        return json.dumps(content | {"signature": b64encode(signature).decode()})

    key_0 = signed(camera_token=token | {"key_index": 0})
    accepted = {
        "signed here": signed(),
        "key 0": key_0,
        "escapes in texts": good.replace("/", r"\/").replace("=", r"\u003d"),
        "escapes in names": good.replace('"version"', r'"\u0076ersion"'),
        "white space of every kind": good.replace(",", " ,\t\r\n "),
    }
    refused = {
        "-0": key_0.replace('"key_index": 0', '"key_index": -0'),
        "0.0": key_0.replace('"key_index": 0', '"key_index": 0.0'),
        "0e1": key_0.replace('"key_index": 0', '"key_index": 0e1'),
        "00": key_0.replace('"key_index": 0', '"key_index": 00'),
        "2.34e2": good.replace('"key_index":234', '"key_index":2.34e2'),
        "version 1.0": good.replace('"version":1', '"version":1.0'),
        "a name twice": good.replace('"version":1', '"version":1,"version":1'),
        "a name twice, once escaped": good.replace('"version":1', r'"version":1,"\u0076ersion":1'),
        "a name of the token twice": good.replace('"key_index"', '"key_index":234,"key_index"'),
        "a table beyond the wire": signed(camera_token=token | {"table_id": 2**31}),
        "a table that is true": signed(camera_token=token | {"table_id": True}),
        "half of a surrogate pair": good.replace('"version":1', r'"version":1,"\ud800":1'),
        "another time format": signed(captured_at="2026-11-23T11:00:00.123Z"),
        "a 31st of November": signed(captured_at="2026-11-31T11:00:00.000000Z"),
        "hour 24": signed(captured_at="2026-11-23T24:00:00.000000Z"),
        "text around a certificate": signed(
            device_certificate_chain=["a camera's\n" + leaf, intermediate]
        ),
        "two certificates in one": signed(
            device_certificate_chain=[
                b64encode(b64decode(leaf) + b64decode(intermediate)).decode(),
                intermediate,
            ]
        ),
        "a certificate in PEM": signed(
            device_certificate_chain=[
                leaf,
                f"-----BEGIN CERTIFICATE-----\n{intermediate}\n-----END CERTIFICATE-----\n",
            ]
        ),
        "a byte order mark": "\ufeff" + good,
        "more than 32 KiB": good + " " * 32_768,
        "a token that is a list": signed(camera_token=[token]),
        "a short hash": signed(image_hash="00" * 31),
        "a hash in upper case": signed(image_hash="AB" * 32),
        "a hash with a line end": signed(image_hash=fields["image_hash"] + "\n"),
        "a long signature": good.replace(
            f'"{fields["signature"]}"', f'"{b64encode(bytes(513)).decode()}"'
        ),
    }
    for passes, texts in ((True, accepted), (False, refused)):
        for name, text in texts.items():
            yield Case(name, text, group["root"], "2026-12-02T12:00:00Z", passes)


def certificates() -> Iterator[Case]:
    """Certificates of our own CA that are not what they must be, and ones that have ended."""
    ca, key = authority(), seeded_keys.p256("test device").public_key()
    now = NOW.strftime("%Y-%m-%dT%H:%M:%SZ")
    a_ca, profile = x509.BasicConstraints(True, 0), (NOT_A_CA, key_usage(ca=False), CLIENT_AUTH)
    between = ca.intermediate
    weak = Signer(seeded_keys.rsa_key("weak intermediate", 1_024))
    koblitz = Signer(ec.derive_private_key(7, ec.SECP256K1()))

    def leaf(*extensions: x509.ExtensionType, **arguments: Any) -> x509.Certificate:
        issuer = arguments.pop("issuer", between)
        return hand_made(key, "camera-7", *extensions, issuer=issuer, signer=ca.signer, **arguments)

    def issuing(
        *extensions: x509.ExtensionType, key: DeviceKey = ca.signer.public_key
    ) -> x509.Certificate:
        name = "Simulated Mfg Intermediate CA"
        return hand_made(
            key,
            name,
            *extensions,
            issuer=ca.root,
            signer=ca.root_signer,
            alternative_names=[],
        )

    sound = issuing(a_ca, key_usage(ca=True))
    paths = {
        "made by hand": (leaf(*profile), between, True),
        "below one made by hand": (leaf(*profile, issuer=sound), sound, True),
        "no basicConstraints": (leaf(*profile[1:]), between, False),
        "two URNs": (leaf(*profile, alternative_names=urns("a", "b")), between, False),
        "no authorityKeyIdentifier": (
            rebuilt(leaf(*profile), ca.signer, without=x509.AuthorityKeyIdentifier),
            between,
            False,
        ),
        "another issuer's name": (leaf(*profile, issuer=ca.root), between, False),
        "a CA that may sign": (
            leaf(x509.BasicConstraints(True, None), *profile[1:]),
            between,
            False,
        ),
        "signed with SHA-224": (
            rebuilt(leaf(*profile), ca.signer, hashed=hashes.SHA224()),
            between,
            False,
        ),
        "an unknown critical extension": (
            rebuilt(leaf(*profile), ca.signer, unknown=True),
            between,
            False,
        ),
        "keyUsage not critical": (
            rebuilt(leaf(*profile), ca.signer, uncritical=x509.KeyUsage),
            between,
            False,
        ),
    }
    for serial, passes in {
        "a!b": False,  # which encodeURIComponent leaves as it is
        "a%21b": True,
        "%63amera-7": False,
        "a b": False,
        "a/b": False,
        "a%2fb": False,
        "a%2Fb%C3%A9": True,
        "%FF": False,
        "": False,
    }.items():
        named = leaf(*profile, alternative_names=urns(serial))
        paths[f"the serial {serial!r}"] = named, between, passes
    for name, extensions in {
        "an issuer for servers": (a_ca, key_usage(ca=True), SERVER_AUTH),
        "an issuer for certain URIs": (
            a_ca,
            key_usage(ca=True),
            x509.NameConstraints(None, [x509.UniformResourceIdentifier("birthmark")]),
        ),
        "an issuer that may not certify": (a_ca, key_usage(ca=False)),
        "an issuer without keyUsage": (a_ca,),
        "an issuer without basicConstraints": (key_usage(ca=True),),
        "an issuer with CA:FALSE": (NOT_A_CA, key_usage(ca=True)),
    }.items():
        issuer = issuing(*extensions)
        paths[name] = (leaf(*profile, issuer=issuer), issuer, False)
    issuer = rebuilt(sound, ca.root_signer, uncritical=x509.BasicConstraints)
    paths["an issuer that is one uncritically"] = leaf(*profile, issuer=issuer), issuer, False
    issuer = issuing(a_ca, key_usage(ca=True), CLIENT_AUTH)
    paths["an issuer for clients"] = leaf(*profile, issuer=issuer), issuer, True
    for signer in weak, koblitz:
        issuer = issuing(a_ca, key_usage(ca=True), key=signer.public_key)
        name = f"an issuer with {type(signer.key).__name__}"
        paths[name] = rebuilt(leaf(*profile, issuer=issuer), signer), issuer, False
    for name, (change, kind, passes) in ISSUER_NAMES.items():
        paths[f"an issuer {name}"] = (
            rebuilt(leaf(*profile), ca.signer, issuer=spelt(between.subject, change, kind)),
            between,
            passes,
        )
    for name, (first, second, passes) in paths.items():
        yield Case(name, bundle_of([pem(first), pem(second)], now), pem(ca.root), now, passes)

    short = leaf(*profile, lasting=timedelta(days=2))
    ends = short.not_valid_after_utc
    text = bundle_of([pem(short), pem(between)], now)
    for name, after, grace, passes in (
        ("ended yesterday, no grace", 1, 0, False),
        ("ended yesterday", 1, 30, True),
        ("ended thirty days ago", 30, 30, True),
        ("ended longer ago than the grace", 31, 30, False),
    ):
        judged = (ends + timedelta(days=after)).strftime("%Y-%m-%dT%H:%M:%SZ")
        yield Case(name, text, pem(ca.root), judged, passes, grace=timedelta(days=grace))
    late = bundle_of([pem(short), pem(between)], (ends + timedelta(seconds=1)).isoformat())
    judged = (ends + timedelta(days=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
    yield Case("captured when it had ended", late, pem(ca.root), judged, False, None, DAYS_30)
    for name, minutes, passes in (("a fast clock", 59, True), ("a wrong clock", 61, False)):
        ahead = bundle_of([pem(leaf(*profile)), pem(between)], later(NOW, minutes))
        yield Case(name, ahead, pem(ca.root), now, passes)
    ahead = bundle_of([pem(short), pem(between)], later(ends, 20))
    yield Case("a fast clock as it ends", ahead, pem(ca.root), later(ends, -10), True)


UTF8 = _ASN1Type.UTF8String
ISSUER_NAMES: dict[str, tuple[Callable[[str], str], _ASN1Type, bool]] = {
    "in upper case": (str.upper, UTF8, True),
    "as PrintableString": (str, _ASN1Type.PrintableString, True),
    "as BMPString": (str, _ASN1Type.BMPString, True),
    "with more white space": (lambda text: f"  {text.replace(' ', '   ')} ", UTF8, True),
    "in full-width letters": (lambda text: text.replace("M", "\uff2d"), UTF8, True),
    "with what is not seen": (lambda text: text.replace("M", "\u200bM\u00ad"), UTF8, True),
    "with a letter less": (lambda text: text[1:], UTF8, False),
    "without white space": (lambda text: text.replace(" ", ""), UTF8, False),
    "with a comma more": (lambda text: f"{text},", UTF8, False),
    "with a line end": (lambda text: f"{text}\nCN=x", UTF8, False),
}


def spelt(name: x509.Name, change: Callable[[str], str], kind: _ASN1Type) -> x509.Name:
    """A name in another spelling. The country has a string type of its own."""
    return x509.Name(
        [
            each
            if each.oid == NameOID.COUNTRY_NAME
            else x509.NameAttribute(each.oid, change(str(each.value)), kind, _validate=False)
            for each in name
        ]
    )


DAYS_30 = timedelta(days=30)


def later(time: datetime, minutes: int) -> str:
    return (time + timedelta(minutes=minutes)).isoformat()


def urns(*serials: str) -> list[x509.GeneralName]:
    return [x509.UniformResourceIdentifier(f"urn:birthmark:device:{each}") for each in serials]


def rebuilt(
    like: x509.Certificate,
    signer: Signer,
    *,
    uncritical: type[x509.ExtensionType] | tuple[()] = (),
    without: type[x509.ExtensionType] | tuple[()] = (),
    unknown: bool = False,
    hashed: hashes.SHA224 | None = None,
    issuer: x509.Name | None = None,
) -> x509.Certificate:
    """The same certificate, but that an extension or the hash differs as told."""
    builder = (
        x509.CertificateBuilder()
        .subject_name(like.subject)
        .issuer_name(issuer or like.issuer)
        .public_key(like.public_key())
        .serial_number(like.serial_number)
        .not_valid_before(like.not_valid_before_utc)
        .not_valid_after(like.not_valid_after_utc)
    )
    for each in like.extensions:
        value, critical = each.value, each.critical and not isinstance(each.value, uncritical)
        if isinstance(value, x509.AuthorityKeyIdentifier):
            value = x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key)
        if not isinstance(value, without):
            builder = builder.add_extension(value, critical=critical)
    if unknown:
        nobodys = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.4.1.32473.1"), b"\5\0")
        builder = builder.add_extension(nobodys, critical=True)
    return builder.sign(signer.key, hashed or signer.hash_algorithm)


TOKEN = CameraToken(bytes(48), 42, 234, bytes(12))


def bundle_of(chain: Sequence[str], now: str, token: CameraToken = TOKEN) -> str:
    """A bundle that the device of a chain (PEM) signed, captured now."""
    leaf, intermediate = (x509.load_pem_x509_certificate(each.encode()) for each in chain)
    moment = datetime.fromisoformat(now)
    content = UnsignedBundle(bytes(32), token, (der(leaf), der(intermediate)), moment)
    key = key_of(leaf)
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
        authority().signer.key,
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
                grace=case.grace,
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
        for (const { text, root, now, grace } of given.cases) {
          told.push(await judge(text, root, given.url, Date.parse(now), grace));
        }
        console.log(JSON.stringify(told));
    """
    sent = [asdict(each) | {"grace": each.grace.total_seconds() * 1_000} for each in cases]
    return [tuple(each) for each in node(script, {"cases": sent, "url": url})]


@pytest.fixture(params=[in_python, in_node], ids=["python", "node"])
def judge(request: pytest.FixtureRequest) -> Judge:
    """Each program in turn."""
    program: Judge = request.param
    return program


def passing(visit: Visit) -> None:
    """An authority that discloses no device."""
    visit.answer({"results": [UNNAMED] * len(visit.tokens)})


@pytest.mark.parametrize("source", [bundles, chains, spellings, certificates])
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
    [paths] = read("certificate_chain")
    chain, now = paths["tests"][0]["chain"], paths["tests"][0]["now"]
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
                now,
                CameraToken(bytes(48), test["tableId"], test["keyIndex"], nonce(number)),
            ),
            paths["root"],
            now,
            passes=test["verdict"] == "PASS",
        )
        for number, test in enumerate(tests)
    ]
    with FaultyServer(answer) as authority:
        told = judge(cases, authority.url)
    assert [verdict for _, verdict, _ in told] == [test["verdict"] for test in tests]


def test_where_asking_again_cannot_help_each_asks_once(judge: Judge) -> None:
    """A wrong access key is somebody's to mend; the bundle is kept meanwhile."""
    good = next(bundles())
    with FaultyServer(lambda visit: visit.answer({}, 401)) as authority:
        [(_, verdict, _)] = judge([good], authority.url)
        assert (verdict, len(authority.visits)) == ("KEPT", 1)


def answers() -> Iterator[tuple[str, bool]]:
    """Answers at status 200, and whether each is a verdict."""

    def with_fields(**fields: Any) -> str:
        return json.dumps({"results": [UNNAMED | fields]})

    good = with_fields()
    verdicts = [
        good,
        with_fields(timestamp="2026-01-31T12:00:00Z"),
        with_fields(timestamp="2026-01-31T12:00:00.1234567Z"),
        with_fields(manufacturer_id="\n"),
        *(with_fields(later=each) for each in (1.0, -0.0, 1e5, 12345678901234567890, [{"1": 2.5}])),
        good[:-1] + ', "later": {"1": 2, "0": 3, "\\u0061": [], "": "a\\":"}}',
        json.dumps({"results": [UNNAMED]}, indent=1),
    ]
    others = [
        *(
            with_fields(timestamp=each)
            for each in (
                "Z",
                "1 Jan 2026 Z",
                "2026-01-01Z",
                "2026-02-30T00:00:00Z",
                "2026-01-01T24:00:00Z",
                "0000-01-01T00:00:00Z",
                "2026-01-01T00:00:00",
            )
        ),
        good[:-1] + ', "results": []}',
        good[:-1] + r', "later": [{"a": 1, "\u0061": 1.0}]}',
        with_fields(later="\ud800"),
        with_fields(manufacturer_id=""),
        "\ufeff" + good,
        good.replace("SimulatedMfg", "\udcff"),  # a byte that is no UTF-8
    ]
    # In turn, as the client in Python rests after a number of answers in a row that are none.
    for number, other in enumerate(others):
        yield verdicts[number % len(verdicts)], True
        yield other, False


def test_an_answer_is_a_verdict_to_both_or_to_neither(judge: Judge) -> None:
    """Threat 19: only what looks like a verdict is one, and fields of later versions harm none."""
    told = [*answers()]
    good = next(bundles())

    def answer(visit: Visit) -> None:
        text, _ = told[len(server.visits) - 1]
        visit.answer(text.encode("utf-8", "surrogateescape"))

    with FaultyServer(answer) as server:
        said = judge([good] * len(told), server.url)
        assert len(server.visits) == len(told)
    wrong = [
        (text, verdict)
        for (text, is_verdict), (_, verdict, _) in zip(told, said, strict=True)
        if verdict != ("PASS" if is_verdict else "KEPT")
    ]
    assert wrong == []


def test_the_address_may_end_in_a_slash(judge: Judge) -> None:
    with FaultyServer(passing) as authority:
        judge([next(bundles())], f"{authority.url}/")
        [visit] = authority.visits
        assert visit.request.startswith(b"POST /api/v1/validate/nuc/batch ")


def test_the_one_in_node_asks_again_after_a_minute_of_rest_and_says_that_it_rests() -> None:
    """A Retry-After of a day, which one answer of a proxy may hold, does not silence it for one."""
    script = """
        const { ask } = await import(aggregator);
        const [now, said] = [performance.now.bind(performance), []];
        process.stderr.write = (text) => said.push(text);
        const verdicts = [];
        for (const seconds of [0, 50, 62]) {
          performance.now = () => now() + 1_000 * seconds;
          verdicts.push((await ask(given, {}))?.validation_result ?? null);
        }
        console.log(JSON.stringify([verdicts, said.map((text) => text.trimEnd())]));
    """
    with FaultyServer(
        lambda visit: visit.answer({}, 429, retry_after="86400"), passing
    ) as authority:
        verdicts, said = node(script, authority.url)
        assert len(authority.visits) == 2
    assert verdicts == [None, None, "PASS"]
    assert said[0].startswith("429 ")
    seconds = [int(each) for each in re.findall(r"no time: (\d+) s to wait", "\n".join(said))]
    assert 60 <= seconds[0] <= 62
    assert 8 <= seconds[1] <= 12


PROGRAMS = {
    "python": [sys.executable, str(EXAMPLES / "aggregator.py")],
    "node": ["node", str(EXAMPLES / "aggregator.mjs")],
}


@pytest.mark.parametrize("language", PROGRAMS)
def test_each_line_gets_one_line(language: str, tmp_path: Path) -> None:
    """What a stranger's certificate says does not become a verdict of its own."""
    ca, key = authority(), seeded_keys.p256("test device").public_key()
    forged = f"x\n{'ab' * 32}\tPASS\tcamera-7"
    stranger = hand_made(key, forged, NOT_A_CA, issuer=ca.intermediate, signer=ca.root_signer)
    good = next(bundles()).text
    lines = [
        good,
        good.replace(",", ",\r"),
        good + "\r",
        "",
        good + " " * 5 * MAX_BUNDLE_BYTES,
        bundle_of([pem(stranger), pem(ca.intermediate)], "2020-01-01T00:00:00Z"),
        "no line end after this",
    ]
    root_file = tmp_path / "root.crt"
    root_file.write_text(pem(ca.root))
    with FaultyServer(passing) as server:
        ran = subprocess.run(
            [*PROGRAMS[language], server.url, str(root_file)],
            input="\n".join(lines).encode(),
            env={"PATH": os.environ["PATH"], "AUTHORITY_KEY": ""},
            capture_output=True,
            timeout=SECONDS,
            check=False,
        )
    assert ran.returncode == 0, ran.stderr.decode()
    told = [line.split("\t") for line in ran.stdout.decode().removesuffix("\n").split("\n")]
    assert [len(each) for each in told] == [3] * len(lines)
    assert told[1] == told[2] == told[0]  # whatever that is at this time
    assert {verdict for _, verdict, _ in told[3:]} == {"REJECTED"}


def test_what_is_told_of_a_bundle_stays_on_its_line() -> None:
    told = ["00", "PASS", "camera\u202e é\n\t\x85 (a\u2028b\u00a0)"]
    expected = "00\tPASS\tcamera? é??? (a?b?)\n"
    assert module_of(EXAMPLES / "aggregator.py").line_of(told).decode() == expected
    script = "const { lineOf } = await import(aggregator);"
    assert node(script + "console.log(JSON.stringify(lineOf(given)));", told) == expected


def test_a_line_that_breaks_the_judging_is_rejected_and_told_of(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A defect, here or in a library, ends neither program, and is not passed over in silence."""
    program = module_of(EXAMPLES / "aggregator.py")

    def broken(*_: object, **__: object) -> None:
        raise TypeError("a defect")

    monkeypatch.setattr(program, "verify_bundle", broken)
    told = program.judge(None, None, b"")
    assert told == ("?" * 64, "REJECTED", "It cannot be judged: TypeError.")
    assert "TypeError: a defect" in capsys.readouterr().err
    script = """
        const { judge } = await import(aggregator);
        const said = [];
        console.error = (error) => said.push(error.name);
        console.log(JSON.stringify([await judge(given), said]));
    """
    (_, verdict, _), said = node(script, {"no": "text"})
    assert (verdict, said) == ("REJECTED", ["TypeError"])


def test_the_one_in_python_reads_no_line_without_end() -> None:
    """Of what is too long it takes no more than shows that, and goes on at the next line."""
    lines = module_of(EXAMPLES / "aggregator.py").lines
    longest = b"b" * MAX_BUNDLE_BYTES
    stream = BytesIO(b"a\n" + longest + b"\n" + longest * 5 + b"\nc\n" + longest * 2)
    read = [*lines(stream)]
    assert [read[0], read[1], read[3]] == [b"a", longest, b"c"]
    assert [MAX_BUNDLE_BYTES < len(read[n]) <= MAX_BUNDLE_BYTES + 2 for n in (2, 4)] == [True] * 2
    assert len(read) == 5
