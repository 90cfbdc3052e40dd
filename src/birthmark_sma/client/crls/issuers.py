"""Cache the revocation lists of all issuers of one authority.

    lists = IssuerCrls("https://sma.example.org", root_lists={"/pki/root.crl": root})
    verify_bundle(received, root=root, now=datetime.now(UTC), crl=lists)

`verify_bundle` calls it with certificates whose path it has verified. An authority has an
intermediate for every few years, each with its own list at its own address, which is in the
device's certificate. Only the path of that address is used, below `/pki/` of the configured
authority: a certificate never makes this program call another server.
"""

import re
import threading
from collections.abc import Mapping
from functools import partial
from typing import Any

from cryptography import x509

from birthmark_sma.client.crls.cache import CrlCache
from birthmark_sma.client.revocation import RevocationList

_FIRST_LIST = "/pki/intermediate.crl"  # of authorities whose certificates have no address
_LIST_PATH = re.compile(r"/pki/(?:ca/)?[a-z]+(?:-[0-9]+)?\.crl\Z", re.ASCII)


class IssuerCrls:
    """The newest lists, fetched when a bundle of their issuer comes first. For any thread.

    In a coroutine, call `verify_bundle` with it in a thread: it may wait for a list.
    """

    def __init__(
        self, url: str, *, root_lists: Mapping[str, x509.Certificate] | None = None, **options: Any
    ) -> None:
        """Configure the cache. No request is sent.

        `url` is that of the authority. `root_lists` has the paths of the lists of roots, such as
        `/pki/root.crl`, with the roots that sign them. With them a compromised intermediate is
        noticed. `options` are as for `CrlCache`.

        Raises ConfigurationError.
        """
        self._url = url.rstrip("/")
        self._options = options
        self._lock = threading.Lock()
        self._caches: dict[tuple[str, x509.Certificate], CrlCache[RevocationList]] = {}
        self.root_lists = dict(root_lists or {})

    def __call__(
        self, device: x509.Certificate, intermediate: x509.Certificate
    ) -> tuple[RevocationList, ...]:
        """Return the list of a device's issuer, and those of the roots.

        Raises RevocationUnknownError if one of them cannot be had.
        """
        issuers = self._cache(_list_path(device), intermediate)
        roots = (self._cache(path, root) for path, root in self.root_lists.items())
        return tuple(each.get().crl for each in (issuers, *roots))

    def _cache(self, path: str, issuer: x509.Certificate) -> CrlCache[RevocationList]:
        with self._lock:
            if (path, issuer) not in self._caches:
                load = partial(RevocationList.load, issuer=issuer)
                self._caches[path, issuer] = CrlCache(self._url + path, load=load, **self._options)
            return self._caches[path, issuer]


def _list_path(device: x509.Certificate) -> str:
    """Return the path of the list that a certificate names, or that of the first intermediate."""
    try:
        points = device.extensions.get_extension_for_class(x509.CRLDistributionPoints).value
    except (x509.ExtensionNotFound, ValueError):
        return _FIRST_LIST
    for point in points:
        for name in point.full_name or ():
            if found := _LIST_PATH.search(str(name.value)):
                return found[0]
    return _FIRST_LIST
