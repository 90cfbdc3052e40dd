"""Tamper evidence of the audit log and of the acts: chains of batches, and signed checkpoints.

Each writer of audit rows has a chain of its own. A batch of the chain covers the rows of one
commit by the root of a Merkle tree, and has the head of the chain up to it. A checkpoint signs the
heads of all chains. docs/adr/0019 explains why; docs/operate/tamper-evidence.md how to verify.
"""
