"""`make public-surface`: record the public surface of the running code."""

import sys

from checks.public_surface.surface import KINDS, record


def main() -> int:
    """Write every file of tests/public_surface/ and print the differences. Return 0."""
    for kind in KINDS:
        differences = record(kind)
        print(f"{kind}: {len(differences) or 'no'} differences")
        for line in differences:
            print(f"  {line}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
