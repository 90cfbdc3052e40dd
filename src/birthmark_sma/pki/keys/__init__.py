"""Accept or refuse public keys, and create and load the private keys of CAs. No I/O.

`pki`, the authority and cameras (`device.provisioning`) call it. Only `ca_keys` and `encrypted_key`
use randomness, inside the cryptography library.
"""
