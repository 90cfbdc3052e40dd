"""A sandbox: an authority for integration tests, which fails on demand and keeps nothing.

Whether an authority is one is decided when it is founded, recorded in its database, and told by the
names in its certificates. What a sandbox does otherwise is composed in `authority.authority` when
it is opened: an authority that is none has not a line of this in its way.
"""
