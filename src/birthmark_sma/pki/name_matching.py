"""Compare distinguished names by the rules of RFC 5280, section 7.1.

The comparison ignores case, the string type (UTF8String, PrintableString, BMPString, ...),
compatible forms of a character (NFKC), repeated white space, and invisible characters.
`path_validation` and `client.revocation` need it because the cryptography library compares bytes,
and so refuses names that OpenSSL accepts.
"""

from cryptography import x509

from birthmark_sma.pki.names import fold


def same_name(one: x509.Name, other: x509.Name) -> bool:
    """Return True if two names are equal under RFC 5280, section 7.1.

    Raises ValueError or TypeError if the library cannot read a name.
    """
    return _folded(one) == _folded(other)


def _folded(name: x509.Name) -> list[list[tuple[str, str | bytes]]]:
    """Return the RDNs in order, normalised. An RDN is a set, so its attributes are sorted."""
    return [
        sorted(
            ((each.oid.dotted_string, _fold(each.value)) for each in rdn),
            key=lambda pair: (pair[0], str(pair[1])),
        )
        for rdn in name.rdns
    ]


def _fold(value: str | bytes) -> str | bytes:
    """Return the normalised value. A bit string is compared by its bits, without normalisation."""
    return value if isinstance(value, bytes) else fold(value)
