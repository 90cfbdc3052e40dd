"""Compare distinguished names as RFC 5280, section 7.1, says: a name may have several spellings.

Case, the string type (UTF8String, PrintableString, BMPString, ...), compatible forms of a character
(NFKC), runs of white space, and characters that are not seen make no difference. Libraries that
compare bytes refuse such names, and OpenSSL accepts them.
"""

from cryptography import x509

from birthmark_sma.pki.names import fold


def same_name(one: x509.Name, other: x509.Name) -> bool:
    """Return True if two names are equal under RFC 5280, section 7.1.

    Raises ValueError or TypeError for a name that the library cannot read.
    """
    return _folded(one) == _folded(other)


def _folded(name: x509.Name) -> list[list[tuple[str, str | bytes]]]:
    """Return the RDNs in their order; within an RDN, a set, the order is no matter."""
    return [
        sorted(
            ((each.oid.dotted_string, _fold(each.value)) for each in rdn),
            key=lambda pair: (pair[0], str(pair[1])),
        )
        for rdn in name.rdns
    ]


def _fold(value: str | bytes) -> str | bytes:
    """Return what is equal for values that are one; of a bit string, only its bits count."""
    return value if isinstance(value, bytes) else fold(value)
