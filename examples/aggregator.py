"""An aggregation server in one file: judges bundles, and keeps those that have no verdict yet.

    python aggregator.py https://sma.example.org root.crt < bundles.jsonl

reads a bundle a line, and writes a line for each: image hash, verdict, device or reason. The access
key is in the environment, AUTHORITY_KEY; CAs for the authority's TLS certificate, if not those of
the system, in the file that AUTHORITY_CA names. To refuse revoked devices before the authority is
asked, name the intermediate's certificate in AUTHORITY_INTERMEDIATE, a file in DER as /pki/ has it:
then the authority's revocation list, which it signs, is fetched and kept fresh.
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

OFFLINE = timedelta(days=30)  # how long a camera may have been without a network
ROUNDS, PAUSE = 3, 1.0  # a server goes on for as long as it keeps the bundle
THREADS = 16  # what they ask at the same time goes out together


def main(url: str, root_file: str) -> None:
    """Judge the bundles on standard input."""
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
    """Return a bundle's image hash, the verdict, and the device or the reason."""
    try:  # 1. Is it whole, and signed by a device that the pinned root vouches for?
        crl = crls.get().crl if crls else None  # verified once, and not for each bundle
        bundle = verify_bundle(text, root=root, now=now or datetime.now(UTC), crl=crl, grace=grace)
    except BundleError as error:
        return "?" * 64, "REJECTED", str(error)
    except RevocationUnknownError as error:
        return "?" * 64, "KEPT", str(error)  # it says nothing of the bundle: judge it later
    except Exception as error:  # a defect: tell it, and judge the others
        traceback.print_exception(error)
        return "?" * 64, "REJECTED", f"It cannot be judged: {type(error).__name__}."
    image_hash = bundle.image_hash.hex()
    for number in range(ROUNDS):
        if number:
            time.sleep(PAUSE)
        match authority.validate_bundle(bundle):  # 2. Is its camera token genuine?
            case Pass(device_family=family):
                return image_hash, "PASS", f"{bundle.device_serial} ({family})"
            case Fail():
                return image_hash, "FAIL", bundle.device_serial
            case Indeterminate(cause=cause, detail=detail, request_id=request_id):
                print(f"{cause}: {detail} request {request_id}", file=sys.stderr)
                if not cause.passes:  # somebody has to mend it first
                    break
    return image_hash, "KEPT", bundle.device_serial  # 3. Neither: keep it, and go on asking.


def lines(stream: BinaryIO) -> Iterator[bytes]:
    """Give each line, and of one that is too long for a bundle no more than shows it."""
    while line := stream.readline(MAX_BUNDLE_BYTES + 2):
        yield line.removesuffix(b"\n")
        while line and not line.endswith(b"\n"):
            line = stream.readline(MAX_BUNDLE_BYTES)


def line_of(told: tuple[str, str, str]) -> bytes:
    """Give a line, in which what is of a certificate or an answer looks like no other line."""
    printable = ("".join(each if each.isprintable() else "?" for each in part) for part in told)
    return "\t".join(printable).encode() + b"\n"


if __name__ == "__main__":
    main(*sys.argv[1:])
