"""Verification of the trail: `trail` compares rows, acts, chains and checkpoints.

`database_reader` reads them from a database, or from a database into which an export was loaded.
"""
