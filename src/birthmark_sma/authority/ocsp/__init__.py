"""The OCSP responder: what verifiers are told about a certificate (RFC 6960, RFC 9919)."""
