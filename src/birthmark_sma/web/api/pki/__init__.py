"""The endpoints for verifiers: revocation lists and OCSP."""
