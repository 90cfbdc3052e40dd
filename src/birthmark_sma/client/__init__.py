"""For aggregation servers: verify bundles, and ask the authority about their camera tokens.

    with AuthorityClient("https://sma.example.org", access_key="sma_...") as authority:
        bundle = verify_bundle(received, root=pinned_root, now=datetime.now(UTC))
        match authority.validate_bundle(bundle):
            case Pass(): ...
            case Fail(): ...
            case Indeterminate(): ...  # no verdict: keep it and ask again, never reject

`AsyncAuthorityClient` is the same for asyncio. It leads to `exchange`, the pure core, whose steps
`asynchronous` carries out; `synchronous` is that in a thread. docs/aggregator.md is the guide.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from birthmark_sma.client.asynchronous import AsyncAuthorityClient
    from birthmark_sma.client.options import Options
    from birthmark_sma.client.outcome import Cause, Fail, Indeterminate, Outcome, Pass
    from birthmark_sma.client.revocation import RevocationList
    from birthmark_sma.client.synchronous import AuthorityClient
    from birthmark_sma.client.verification import VerifiedBundle, verify_bundle

__all__ = [
    "AsyncAuthorityClient",
    "AuthorityClient",
    "Cause",
    "Fail",
    "Indeterminate",
    "Options",
    "Outcome",
    "Pass",
    "RevocationList",
    "VerifiedBundle",
    "verify_bundle",
]

# HTTP and cryptography are loaded with the first name that needs them.
_MODULES = {
    "AsyncAuthorityClient": "asynchronous",
    "AuthorityClient": "synchronous",
    "Cause": "outcome",
    "Fail": "outcome",
    "Indeterminate": "outcome",
    "Options": "options",
    "Outcome": "outcome",
    "Pass": "outcome",
    "RevocationList": "revocation",
    "VerifiedBundle": "verification",
    "verify_bundle": "verification",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found: object = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = found
    return found
