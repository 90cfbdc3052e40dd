"""An aggregation server in one file: judges bundles, and keeps those that have no verdict yet.

    python aggregator.py https://sma.example.org root.crt < bundles.jsonl

reads a bundle a line, and writes a line for each: image hash, verdict, device or reason. The access
key is in the environment, AUTHORITY_KEY; CAs for the authority's TLS certificate, if not those of
the system, in the file that AUTHORITY_CA names; the authority's revocation list, if you fetch it,
in the file that AUTHORITY_CRL names.
"""

import os
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509

from birthmark_sma.client import (
    AuthorityClient,
    Fail,
    Indeterminate,
    Pass,
    VerifiedBundle,
    verify_bundle,
)
from birthmark_sma.errors import BundleError, RevocationUnknownError

OFFLINE = timedelta(days=30)  # how long a camera may have been without a network
ROUNDS, PAUSE = 3, 1.0  # a server goes on for as long as it keeps the bundle


def main(url: str, root_file: str) -> None:
    """Judge the bundles on standard input."""
    root = x509.load_pem_x509_certificate(Path(root_file).read_bytes())
    crl_file = os.environ.get("AUTHORITY_CRL")
    crl = x509.load_der_x509_crl(Path(crl_file).read_bytes()) if crl_file else None
    ca_file = os.environ.get("AUTHORITY_CA")
    waiting: list[VerifiedBundle] = []
    for line in sys.stdin.buffer:
        try:  # 1. Is it whole, and signed by a device that the pinned root vouches for?
            bundle = verify_bundle(line, root=root, now=datetime.now(UTC), crl=crl, grace=OFFLINE)
        except BundleError as error:
            tell("?" * 64, "REJECTED", str(error))
        except RevocationUnknownError as error:
            sys.exit(f"{error}")  # it says nothing of the bundle: fetch a newer list
        else:
            waiting.append(bundle)

    with AuthorityClient(
        url,
        access_key=os.environ.get("AUTHORITY_KEY"),
        ca_file=Path(ca_file) if ca_file else None,
    ) as authority:
        for _ in range(ROUNDS):
            waiting = [bundle for bundle in waiting if not settled(authority, bundle)]
            if not waiting:
                return
            time.sleep(PAUSE)
    for bundle in waiting:  # 3. Neither accepted nor rejected: keep it, and go on asking.
        tell(bundle.image_hash.hex(), "KEPT", bundle.device_serial)


def settled(authority: AuthorityClient, bundle: VerifiedBundle) -> bool:
    """Ask the authority, and say whether there is a verdict."""
    image_hash = bundle.image_hash.hex()
    match authority.validate_bundle(bundle):  # 2. Is its camera token genuine?
        case Pass(device_family=family):
            tell(image_hash, "PASS", f"{bundle.device_serial} ({family})")
            return True
        case Fail():
            tell(image_hash, "FAIL", bundle.device_serial)
            return True
        case Indeterminate(cause=cause, detail=detail, request_id=request_id):
            print(f"{cause}: {detail} request {request_id}", file=sys.stderr)
            return False


def tell(image_hash: str, verdict: str, about: str) -> None:
    """Write a line of the outcome."""
    print(image_hash, verdict, about, sep="\t", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
