"""The configuration of Sphinx. `make docs` builds the pages; a warning is an error."""

import re
from importlib.metadata import version as installed_version
from pathlib import Path

from sphinx.application import Sphinx

project = "Simulated Manufacturer Authority"
author = "The Birthmark Standard"
release = version = installed_version("birthmark-sma")

extensions = ["myst_parser"]
exclude_patterns = ["_build"]
nitpicky = True

# GitHub makes the same anchors, so a link to a heading works there and here.
myst_heading_anchors = 4
# Pages link to programs and to pages in the repository's root. They become downloads.
html_theme = "furo"
html_title = "Simulated Manufacturer Authority"
html_copy_source = False
html_show_sphinx = False
html_theme_options = {"navigation_with_keys": True}
html_css_files = ["wide-tables.css"]
html_static_path = ["static"]

_OUTSIDE = re.compile(r"\[([^\]\n]+)\]\(((?:\.\./)+[^)#\s]+)\)")


def offer_files(app: Sphinx, docname: str, source: list[str]) -> None:
    """Turn links to files outside docs/ into downloads, because they are no pages here."""
    page = Path(app.srcdir, docname).parent

    def download(link: re.Match[str]) -> str:
        target = (page / link[2]).resolve()
        if target.is_relative_to(app.srcdir) or not target.is_file():
            return link[0]
        return f"{{download}}`{link[1].strip('`')} <{link[2]}>`"

    source[0] = _OUTSIDE.sub(download, source[0])


def setup(app: Sphinx) -> None:
    """Register what this file adds to Sphinx."""
    app.connect("source-read", offer_files)
