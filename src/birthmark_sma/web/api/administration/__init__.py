"""The administration API: devices, access keys, flags, validations, key tables, issuers and acts.

Each endpoint parses a request and calls `authority`, with the access key as the actor. The objects
of the responses are those of `authority.representations`.
"""
