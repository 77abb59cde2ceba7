"""Tables in docs that a command writes: what stands between a pair of markers is replaced."""

import re
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"


def replace(page: Path, marker: str, text: str) -> None:
    """Put text between the two lines ``<!-- marker -->`` of a page."""
    line = f"<!-- {marker} -->\n"
    found = page.read_text()
    if found.count(line) != 2:
        raise ValueError(f"{page} has {found.count(line)} lines {line.strip()}, expected 2")
    page.write_text(re.sub(f"{line}.*{line}", lambda _: f"{line}{text}\n{line}", found, flags=re.DOTALL))
