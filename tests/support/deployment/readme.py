"""Read the code blocks of the README, so that tests run what a reader types."""

import re

from tests.support.deployment.platforms import ROOT

README = ROOT / "README.md"
DEFAULT_URL = "http://127.0.0.1:8000"
EXAMPLE_DATABASE = "postgresql://user:password@host/database"


def block(language: str, containing: str) -> str:
    """Return the README's one code block of a language that contains a text."""
    blocks = re.findall(rf"```{language}\n(.*?)```", README.read_text("utf-8"), re.DOTALL)
    [found] = [each for each in blocks if containing in each]
    return str(found)
