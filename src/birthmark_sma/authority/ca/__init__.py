"""The certificate authority: its creation, its two keys, and its revocation lists.

The server loads the intermediate's key. It never loads the root's.
"""
