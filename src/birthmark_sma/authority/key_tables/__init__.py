"""The 2,500 shared key tables: their wrapped master keys, a cache of them, and who uses them.

A master key never leaves this folder unwrapped, but to seal or open camera tokens.
"""
