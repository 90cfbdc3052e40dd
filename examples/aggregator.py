"""An aggregation server in one file: judges bundles, and keeps those that have no verdict yet.

    python aggregator.py https://sma.example.org root.crt < bundles.jsonl

reads a bundle a line, and writes a line for each: image hash, verdict, device or reason. The access
key is in the environment, AUTHORITY_KEY; CAs for the authority's TLS certificate, if not those of
the system, in the file that AUTHORITY_CA names; the authority's revocation list, if you fetch it,
in the file that AUTHORITY_CRL names, and the intermediate's certificate, which signs that list, in
the file that AUTHORITY_INTERMEDIATE names (both in DER, as /pki/ has them).
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
    crl_file = os.environ.get("AUTHORITY_CRL")
    crl = load_crl(Path(crl_file)) if crl_file else None
    ca_file = os.environ.get("AUTHORITY_CA")
    with (
        AuthorityClient(
            url,
            access_key=os.environ.get("AUTHORITY_KEY") or None,
            ca_file=Path(ca_file) if ca_file else None,
        ) as authority,
        ThreadPoolExecutor(THREADS) as threads,
    ):
        waiting = lines(sys.stdin.buffer)
        while some := [*islice(waiting, 10 * THREADS)]:
            for told in threads.map(partial(judge, authority, root, crl=crl), some):
                sys.stdout.buffer.write(line_of(told))
                sys.stdout.buffer.flush()


def load_crl(file: Path) -> RevocationList:
    """Verify the authority's revocation list once: then a look-up costs nothing."""
    intermediate = Path(os.environ["AUTHORITY_INTERMEDIATE"]).read_bytes()
    issuer = x509.load_der_x509_certificate(intermediate)
    return RevocationList.load(file.read_bytes(), issuer=issuer)


def judge(
    authority: AuthorityClient,
    root: x509.Certificate,
    text: bytes,
    *,
    crl: RevocationList | None = None,
    now: datetime | None = None,
    grace: timedelta = OFFLINE,
) -> tuple[str, str, str]:
    """Return a bundle's image hash, the verdict, and the device or the reason."""
    try:  # 1. Is it whole, and signed by a device that the pinned root vouches for?
        bundle = verify_bundle(text, root=root, now=now or datetime.now(UTC), crl=crl, grace=grace)
    except BundleError as error:
        return "?" * 64, "REJECTED", str(error)
    except RevocationUnknownError as error:
        sys.exit(f"{error}")  # it says nothing of the bundle: fetch a newer list
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
