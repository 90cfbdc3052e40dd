"""The trail of acts: who changed the authority, when, why, and from what to what.

`trail` records an act in the transaction that does it. `search` finds acts (docs/adr/0017).
"""
