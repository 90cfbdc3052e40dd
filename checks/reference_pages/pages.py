"""Say which parts of which pages are generated."""

from pathlib import Path

from checks.reference_pages import (
    api,
    lists,
    openapi_document,
    schema_diagram,
    schema_tables,
)
from checks.reference_pages.marks import replace_part

DOCS = Path(__file__).parents[2] / "docs"


def make_files() -> dict[str, str]:
    """Return the text of every file with a generated part, by its path from docs/."""
    document = openapi_document.make_document()
    parts = {
        "api.md": {
            "operations": api.render_index(document),
            "common statuses": api.render_common(document),
            "reference": api.render(document),
            "problem types": api.render_problems(),
        },
        "commands.md": {"commands": lists.render_commands()},
        "database.md": {"tables": schema_tables.render()},
        "metrics.md": {"metrics": lists.render_metrics()},
        "settings.md": {"settings": lists.render_settings()},
        "operate/why-did-my-token-fail.md": {"reasons": lists.render_reasons()},
    }
    made = {
        "openapi.json": openapi_document.render(document),
        "schema.svg": schema_diagram.render(),
        "../deploy/prometheus/alerts.yml": lists.render_alerts(),
    }
    for name, texts in parts.items():
        page = (DOCS / name).read_text(encoding="utf-8")
        for part, text in texts.items():
            page = replace_part(page, part, text)
        made[name] = page
    return made
