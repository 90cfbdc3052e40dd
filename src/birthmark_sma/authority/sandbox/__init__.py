"""The sandbox: an authority for integration tests that fails on demand and deletes its data.

An authority is created as a sandbox or not, for ever: its database records it, and the names in its
certificates show it. `authority.authority` puts the sandbox's classes in place when it opens a
sandbox. Only `guards`, which keeps the two kinds apart, may run in an authority that is not a
sandbox. The background task `background.sandbox_expiry` deletes the data.
"""
