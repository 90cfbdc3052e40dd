"""Write the table of settings into docs/operator.md: `make settings-table`.

The table of settings in `birthmark_sma.config` is the source. A test compares the two.
"""

from pathlib import Path

from birthmark_sma.config import (
    NewSecret,
    Settings,
    describe_default,
    environment_variable,
    find_setting,
)

PAGE = Path(__file__).parents[1] / "docs" / "operator.md"
_BEGIN, _END = "<!-- settings: made by `make settings-table` -->\n", "<!-- end of settings -->\n"


def make_table() -> str:
    """Return the table as Markdown: a row for each setting, in the order of their declaration."""
    rows = ["| variable | default | meaning |", "| --- | --- | --- |"]
    for model in (Settings, NewSecret):
        for name, field in model.model_fields.items():
            default = describe_default(model, name)
            # A value is code, a description of the default is text.
            shown = (
                f"`{default}`" if default and find_setting(model, name).default is None else default
            )
            meaning = " ".join((field.description or "").split()).replace("|", "\\|")
            rows.append(
                f"| `{environment_variable(name)}` | {shown} | {meaning} |".replace("|  |", "| |")
            )
    return "\n".join(rows) + "\n"


def replace_table(page: str) -> str:
    """Return a page with the present table in place of its old one."""
    before, _, rest = page.partition(_BEGIN)
    _, _, after = rest.partition(_END)
    return f"{before}{_BEGIN}\n{make_table()}\n{_END}{after}"


if __name__ == "__main__":
    PAGE.write_text(replace_table(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
