"""Replace the generated part of a page, which stands between two HTML comments."""

from collections.abc import Sequence


def replace_part(page: str, name: str, text: str) -> str:
    """Return a page with the text between the marks of `name` replaced.

    Raises ValueError if the page has no such marks.
    """
    begin = f"<!-- generated: {name}; run `make reference-pages` -->\n"
    end = f"<!-- end of {name} -->"
    before, _, rest = page.partition(begin)
    _, mark, after = rest.partition(end)
    if not mark:
        raise ValueError(f"the page has no marks around {name}")
    return f"{before}{begin}\n{text.strip()}\n\n{end}{after}"


def table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """Return a Markdown table."""
    lines = [f"| {' | '.join(header)} |", f"|{' --- |' * len(header)}"]
    lines += [f"| {' | '.join(_one_line(cell) for cell in row)} |" for row in rows]
    return "\n".join(lines) + "\n"


def _one_line(cell: str) -> str:
    return " ".join(cell.split()).replace("|", "\\|")
