"""The Birthmark Standard's Simulated Manufacturer Authority.

It issues device certificates, hands out key tables, and validates camera tokens. ARCHITECTURE.md
is the map of this package.
"""

__version__ = "0.1.0"
