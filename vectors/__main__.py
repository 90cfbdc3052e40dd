"""`python -m vectors` writes the vectors; `--check` lists the files that would change."""

import argparse
import sys
from pathlib import Path

from vectors.generator.all_files import all_files

HERE = Path(__file__).parent


def main() -> int:
    """Write or compare the files, and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m vectors", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing")
    check: bool = parser.parse_args().check
    changed = [
        name
        for name, content in all_files(HERE).items()
        if not (HERE / name).exists() or (HERE / name).read_bytes() != content
    ]
    for name in changed:
        print(f"{name} {'differs' if check else 'written'}")
        if not check:
            (HERE / name).write_bytes(all_files(HERE)[name])
    return 1 if check and changed else 0


if __name__ == "__main__":
    sys.exit(main())
