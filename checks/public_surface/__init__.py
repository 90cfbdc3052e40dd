"""Collect the public surface of the running code, and compare it with what was recorded.

The recorded surface is in tests/public_surface/, one JSON file per kind. `make public-surface`
writes these files; tests/test_public_surface.py compares them with the code. The collectors read
running objects: classes, the command tree, and the responses of an authority in one process. No
collector writes the path of an internal module, so moving a module changes none of the files.
"""
