"""The Birthmark Standard's Simulated Manufacturer Authority.

It issues device certificates, assigns key tables to cameras, and validates camera tokens.
ARCHITECTURE.md describes the subpackages.
"""

__version__ = "0.1.0"
