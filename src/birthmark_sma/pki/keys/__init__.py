"""Accept or refuse public keys, and create and load the private keys of CAs. No I/O.

The authority and `pki` call it. Only `ca_keys` and `encrypted_key` use randomness, inside the
cryptography library.
"""
