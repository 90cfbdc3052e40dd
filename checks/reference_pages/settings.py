"""Make the table of settings from the declarations in `birthmark_sma.config`."""

from birthmark_sma.config import (
    NewSecret,
    Settings,
    describe_default,
    environment_variable,
    find_setting,
)
from checks.reference_pages.marks import table


def render() -> str:
    """Return the table as Markdown: a row for each setting, in the order of their declaration."""
    rows = []
    for model in (Settings, NewSecret):
        for name, field in model.model_fields.items():
            default = describe_default(model, name)
            # A value is code, a description of the default is text.
            is_value = default and find_setting(model, name).default is None
            rows.append(
                (
                    f"`{environment_variable(name)}`",
                    f"`{default}`" if is_value else default,
                    field.description or "",
                )
            )
    return table(("variable", "default", "meaning"), rows)
