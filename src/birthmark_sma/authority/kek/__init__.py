"""The key-encryption key (KEK): the source of its secret, wrapping with it, and its rotation.

Called by the ceremony, the opening of an authority, `sma secrets` and `sma doctor`. Other folders
wrap and unwrap with `KeyEncryptionKeys`. They must never get the bytes of the key.
"""
