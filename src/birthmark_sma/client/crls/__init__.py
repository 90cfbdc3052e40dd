"""Fetch revocation lists (CRLs) and keep them fresh: one list (`cache`), or all of an authority.

Called by aggregation servers and by `bundle_verification`, which gets the lists of all issuers from
`issuers`. Nothing here decides if a certificate is revoked: `client.revocation` does.
"""
