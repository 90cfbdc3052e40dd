"""`python check.py check <vectors>`, or `seal` / `open` with JSON on standard input."""

import json
import os
import sys
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

import birthmark
from birthmark import Refused
from cryptography.hazmat.primitives.serialization import load_pem_public_key

Outcome = Iterator[tuple[dict, Callable[[], bool]]]


def key_derivation(group: dict) -> Outcome:
    salt, suffix = bytes.fromhex(group["salt"]), bytes.fromhex(group["infoSuffix"])
    for test in group["tests"]:
        master_key, expected = bytes.fromhex(test["masterKey"]), bytes.fromhex(test["derivedKey"])
        yield (
            test,
            lambda k=master_key, i=test["keyIndex"], e=expected: (
                birthmark.derive_key(k, i, salt, suffix) == e
            ),
        )


def camera_token(group: dict) -> Outcome:
    for test in group["tests"]:
        yield test, lambda test=test: _opens_and_seals(test, group["keysPerTable"])


def _opens_and_seals(test: dict, keys_per_table: int) -> bool:
    token, master_key = test["cameraToken"], bytes.fromhex(test["masterKey"])
    nuc_hash = birthmark.open_token(token, master_key, keys_per_table)
    nonce = bytes.fromhex(token["nonce"])
    again = birthmark.seal(nuc_hash, master_key, token["table_id"], token["key_index"], nonce)
    same = again == {k: v.lower() if isinstance(v, str) else v for k, v in token.items()}
    return nuc_hash.hex() == test["nucHash"] and same


def provisioning_response(group: dict) -> Outcome:
    for test in group["tests"]:
        if group["type"] == "Response":
            answer = test["response"]
            yield test, lambda a=answer: ("table_keys" in a) != ("table_keys_jwe" in a)
            continue
        key = birthmark.recipient_key(group["recipientLabel"], group["curve"])
        yield (
            test,
            lambda t=test, key=key: (
                birthmark.open_table_keys(t["tableKeysJwe"], key) == t["tableKeys"]
            ),
        )


def certificate_chain(group: dict) -> Outcome:
    for test in group["tests"]:
        yield (
            test,
            lambda t=test: (
                birthmark.verify_chain(t["chain"], group["root"], datetime.fromisoformat(t["now"]))
                == t["deviceSerial"]
            ),
        )


def bundle_signature(group: dict) -> Outcome:
    if group["type"] == "Bundle":
        now = datetime.fromisoformat(group["now"])
        for test in group["tests"]:
            yield (
                test,
                lambda t=test: (
                    birthmark.verify_bundle(t["bundle"], group["root"], now) == t["deviceSerial"]
                ),
            )
        return
    key = load_pem_public_key(group["publicKey"].encode())
    for test in group["tests"]:
        yield test, lambda t=test: _signed(t, key)


def _signed(test: dict, key: object) -> bool:
    message = birthmark.signed_bytes(json.loads(test["bundle"]))
    birthmark.verify_signature(bytes.fromhex(test["signature"]), message, key)
    return message.hex() == test["signedBytes"]


def verdict(group: dict) -> Outcome:
    for test in group["tests"]:
        reason = birthmark.judge(
            group["tables"],
            group["keysPerTable"],
            test["tableId"],
            test["keyIndex"],
            opened=test["opened"],
            device=test["device"],
        )
        # Here FAIL is an outcome, not a refusal: the reason must be right either way.
        if reason != test["reason"]:
            raise AssertionError(f"verdict {test['tcId']}: {reason}, not {test['reason']}")
        yield test, lambda r=reason: r == "genuine"


FILES = (
    key_derivation,
    camera_token,
    provisioning_response,
    certificate_chain,
    bundle_signature,
    verdict,
)


def accepted(attempt: Callable[[], bool]) -> bool:
    """Say whether a test was accepted, with what it says."""
    try:
        return attempt()
    except Refused:
        return False


def check(vectors: Path) -> int:
    """Run all files; return how many tests went wrong."""
    wrong = 0
    for run in FILES:
        document = json.loads((vectors / f"{run.__name__}_test.json").read_text(encoding="ascii"))
        ran = 0
        for group in document["testGroups"]:
            for test, attempt in run(group):
                ran += 1
                if test["result"] != "acceptable" and accepted(attempt) != (
                    test["result"] == "valid"
                ):
                    wrong += 1
                    print(f"{run.__name__} {test['tcId']}: {test['comment']}: {test['result']}")
        if ran != document["numberOfTests"]:
            wrong += 1
        print(f"{run.__name__}: {ran} tests")
    return wrong


def main() -> int:
    """Run as the first argument says."""
    if sys.argv[1] == "check":
        return 1 if check(Path(sys.argv[2])) else 0
    given = json.load(sys.stdin)
    master_key = bytes.fromhex(given["master_key"])
    if sys.argv[1] == "seal":
        nuc_hash = bytes.fromhex(given["nuc_hash"])
        table, index = given["table_id"], given["key_index"]
        print(json.dumps(birthmark.seal(nuc_hash, master_key, table, index, os.urandom(12))))
        return 0
    print(birthmark.open_token(given["camera_token"], master_key).hex())
    return 0


if __name__ == "__main__":
    sys.exit(main())
