"""Make the list of metrics from the table `birthmark_sma.runtime.metrics`."""

from birthmark_sma.runtime.metrics import METRICS
from checks.reference_pages.marks import table


def render() -> str:
    """Return a Markdown table with a row for each metric."""
    rows = [
        (
            f"`{each.name}_total`" if each.type == "counter" else f"`{each.name}`",
            each.type,
            ", ".join(f"`{label}`" for label in each.labels),
            each.help,
        )
        for each in METRICS
    ]
    return table(("metric", "type", "labels", "what it is"), rows)
