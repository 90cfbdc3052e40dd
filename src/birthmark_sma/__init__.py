"""The Birthmark Standard's Simulated Manufacturer Authority.

It issues device certificates, assigns key tables to cameras, and validates camera tokens.
ARCHITECTURE.md describes the subpackages.
"""

__version__ = "0.1.0"

# It names no package of an index: none is published yet.
HOW_TO_INSTALL = (
    "In a clone, type: make setup. Or install the wheel with its server:"
    f" pip install './birthmark_sma-{__version__}-py3-none-any.whl[server]'"
)
