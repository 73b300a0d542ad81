"""The map in docs/design.md and the README, held against the code."""

import re
from pathlib import Path

CHECKOUT = Path(__file__).parents[2]
PACKAGE = CHECKOUT / "service" / "moorage"
README_LINES = 150


def test_the_map_names_every_module() -> None:
    text = (CHECKOUT / "docs" / "design.md").read_text().split("\n## The map\n")[1]
    rows = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    named = re.findall(r"`([a-z_0-9.]+)`", " ".join(rows))
    modules = [
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        for path in PACKAGE.rglob("*.py")
        if path.name != "__init__.py"
    ]
    assert sorted(named) == sorted(modules)


def test_the_readme_is_short_and_its_links_lead_somewhere() -> None:
    text = (CHECKOUT / "README.md").read_text()
    assert len(text.splitlines()) <= README_LINES
    pages = [CHECKOUT / "README.md", *(CHECKOUT / "docs").glob("*.md")]
    for page in pages:
        for link in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.name}: {link}"
