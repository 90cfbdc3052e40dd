"""The shared key tables (2,500 by default): wrapped master keys, a cache of them, usage statistics.

An unwrapped master key must never leave this package, except for its two uses: to open camera
tokens, and to provision a device that the table is assigned to.
"""
