"""`python -m checks.metric_docs`: write the list of metrics in docs/operator.md.

The list is made from the table `birthmark_sma.runtime.metrics`. A test compares the two.
"""

from pathlib import Path

from birthmark_sma.runtime.metrics import METRICS

GUIDE = Path(__file__).parents[1] / "docs" / "operator.md"
_BEGIN = "<!-- made by `python -m checks.metric_docs` -->\n\n"
_END = "\n<!-- end of the list of metrics -->"


def render() -> str:
    """Return the list of metrics as a Markdown table."""
    lines = ["| metric | type | labels | what |", "| --- | --- | --- | --- |"]
    for each in METRICS:
        name = f"{each.name}_total" if each.type == "counter" else each.name
        labels = ", ".join(f"`{label}`" for label in each.labels)
        lines.append(f"| `{name}` | {each.type} | {labels} | {each.help} |")
    return "\n".join(lines) + "\n"


def replace_list(page: str) -> str:
    """Return a page with the list between its marks replaced. Raises ValueError without marks."""
    before, _, rest = page.partition(_BEGIN)
    _, mark, after = rest.partition(_END)
    if not mark:
        raise ValueError("docs/operator.md has no marks around the list of metrics")
    return before + _BEGIN + render() + _END + after


if __name__ == "__main__":
    GUIDE.write_text(replace_list(GUIDE.read_text(encoding="utf-8")), encoding="utf-8")
