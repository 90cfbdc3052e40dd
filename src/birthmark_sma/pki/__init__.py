"""Issue and verify X.509 certificates, CSRs and revocation lists. PURE: no clock and no I/O.

The authority issues with it; cameras and aggregation servers verify with it. `certificates`
prepares a certificate, checks it against its profile (`profiles`, `profile_check`), and only then
signs it. `path_validation` verifies certificates that others present. `keys` has the key policy and
the keys of CAs.

Callers pass in the time and serial numbers. Only key generation, key encryption and ECDSA
signatures use randomness, inside the cryptography library.
"""
