"""Certificates and keys, pure: key, time and serial number are passed in.

`key_policy` says which keys may be certified, `profiles` what each kind of certificate carries, and
`issue` prepares a certificate, checks it against its profile, and only then signs it. `path`
verifies what others present. Only `signer` makes keys, and so draws randomness of its own.
"""
