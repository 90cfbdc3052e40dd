"""The core of an aggregation server in one file: verify bundles and validate their camera tokens.

    python aggregator.py https://sma.example.org root.crt < bundles.jsonl

It reads one bundle from each line and writes a line for each: image hash, verdict, device or
reason. A bundle without a verdict is KEPT: validate it again later. Environment variables:

AUTHORITY_KEY           the access key
AUTHORITY_CA            a file with CAs for the authority's TLS certificate, else the system's CAs
AUTHORITY_INTERMEDIATE  a file with the intermediate's certificate, in DER as /pki/ has it. The
                        authority's revocation list is then downloaded and kept fresh, and revoked
                        devices are refused before their tokens are validated.
"""

import os
import sys
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import islice
from pathlib import Path
from typing import BinaryIO

from cryptography import x509

from birthmark_sma.client import (
    AuthorityClient,
    CrlCache,
    Fail,
    Indeterminate,
    Pass,
    RevocationList,
    verify_bundle,
)
from birthmark_sma.errors import BundleError, RevocationUnknownError
from birthmark_sma.protocol.bundle import MAX_BUNDLE_BYTES

OFFLINE = timedelta(days=30)  # the longest time that a camera may be without a network
ROUNDS, PAUSE = 3, 1.0  # a real server repeats for as long as it keeps the bundle
THREADS = 16  # the client sends the concurrent calls of threads in one request


def main(url: str, root_file: str) -> None:
    """Judge the bundles on standard input, up to 160 at a time, and print a line for each."""
    root = x509.load_pem_x509_certificate(Path(root_file).read_bytes())
    access_key = os.environ.get("AUTHORITY_KEY") or None
    ca_file = Path(name) if (name := os.environ.get("AUTHORITY_CA")) else None
    crls = None
    if name := os.environ.get("AUTHORITY_INTERMEDIATE"):
        load = partial(
            RevocationList.load, issuer=x509.load_der_x509_certificate(Path(name).read_bytes())
        )
        list_url = f"{url.rstrip('/')}/pki/intermediate.crl"
        crls = CrlCache(list_url, load=load, access_key=access_key, ca_file=ca_file)
    with (
        AuthorityClient(url, access_key=access_key, ca_file=ca_file) as authority,
        ThreadPoolExecutor(THREADS) as threads,
    ):
        waiting = lines(sys.stdin.buffer)
        while some := [*islice(waiting, 10 * THREADS)]:
            for told in threads.map(partial(judge, authority, root, crls=crls), some):
                sys.stdout.buffer.write(line_of(told))
                sys.stdout.buffer.flush()


def judge(
    authority: AuthorityClient,
    root: x509.Certificate,
    text: bytes,
    *,
    crls: CrlCache[RevocationList] | None = None,
    now: datetime | None = None,
    grace: timedelta = OFFLINE,
) -> tuple[str, str, str]:
    """Return image hash, verdict, and device or reason of a bundle.

    The verdict is PASS, FAIL, REJECTED (the bundle is not valid) or KEPT (there is no verdict yet).
    """
    try:  # 1. Verify format, certificate chain (up to the pinned root) and signature.
        crl = crls.get().crl if crls else None  # verified once, not for each bundle
        bundle = verify_bundle(text, root=root, now=now or datetime.now(UTC), crl=crl, grace=grace)
    except BundleError as error:
        return "?" * 64, "REJECTED", str(error)
    except RevocationUnknownError as error:
        return "?" * 64, "KEPT", str(error)  # no fault of the bundle: judge it later
    except Exception as error:  # a defect of this program must not stop the other bundles
        traceback.print_exception(error)
        return "?" * 64, "REJECTED", f"It cannot be judged: {type(error).__name__}."
    image_hash = bundle.image_hash.hex()
    for number in range(ROUNDS):
        if number:
            time.sleep(PAUSE)
        match authority.validate_bundle(bundle):  # 2. Validate the camera token.
            case Pass(device_family=family):
                return image_hash, "PASS", f"{bundle.device_serial} ({family})"
            case Fail():
                return image_hash, "FAIL", bundle.device_serial
            case Indeterminate(cause=cause, detail=detail, request_id=request_id):
                print(f"{cause}: {detail} request {request_id}", file=sys.stderr)
                if not cause.passes:  # a retry does not help: a person has to act first
                    break
    return image_hash, "KEPT", bundle.device_serial  # 3. No verdict: keep the bundle and retry.


def lines(stream: BinaryIO) -> Iterator[bytes]:
    """Yield each line. Cut a line off that is too long for a bundle, so that memory is bounded.

    The cut line is still longer than MAX_BUNDLE_BYTES, so `verify_bundle` rejects it.
    """
    while line := stream.readline(MAX_BUNDLE_BYTES + 2):
        yield line.removesuffix(b"\n")
        while line and not line.endswith(b"\n"):
            line = stream.readline(MAX_BUNDLE_BYTES)


def line_of(told: tuple[str, str, str]) -> bytes:
    """Return an output line, with "?" for characters that are not printable.

    Texts of a certificate or a response could otherwise contain a line break and fake a line.
    """
    printable = ("".join(each if each.isprintable() else "?" for each in part) for part in told)
    return "\t".join(printable).encode() + b"\n"


if __name__ == "__main__":
    main(*sys.argv[1:])
