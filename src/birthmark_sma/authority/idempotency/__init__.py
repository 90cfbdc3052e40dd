"""Idempotency: a repeated request with the same Idempotency-Key gets the first response again.

Provisioning and the administration API use it. A stored response may hold secrets, so it is only
stored encrypted under the key-encryption key.
"""
