"""The web layer of a sandbox: it injects faults on demand in front of a normal authority.

`web.server` uses it only for an authority that was created as a sandbox.
"""
