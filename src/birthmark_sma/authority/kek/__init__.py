"""The key-encryption key (KEK): where its secret comes from, what it wraps, how it is rotated.

No other folder sees the unwrapped key.
"""
