"""The certificate authority: creation of root and intermediate, their keys, and the CRLs.

Called by `sma init`, `sma ca`, the server and the rotation of secrets. The server loads the key of
the intermediate. It must never load the key of the root.
"""
