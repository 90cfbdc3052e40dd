"""The web of a sandbox: failures on demand, before an authority that otherwise answers as ever.

`web.server` composes it for an authority that was founded as a sandbox, and for no other.
"""
