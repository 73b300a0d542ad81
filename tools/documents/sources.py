"""Gathers the sources of the HTML documents: what is in docs, the man pages with all that is filled in, the reference.

python3 tools/documents/sources.py DIRECTORY
"""

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

CHECKOUT = Path(__file__).resolve().parents[2]
MAN = CHECKOUT / "tools" / "packaging" / "man.py"

REFERENCE = (
    ("moorage.client", "Requests, replies and errors"),
    ("moorage.client.events", "Events"),
    ("moorage.client.blocking", "Without an event loop"),
    ("moorage.client.trio", "On trio"),
    ("moorage.client.asyncio", "On asyncio"),
    ("moorage.launch.blocking", "Processes that wait, without an event loop"),
    ("moorage.launch.trio", "Processes that wait, on trio"),
    ("moorage.launch.asyncio", "Processes that wait, on asyncio"),
)
"""Modules that programs import, with a heading for each."""


def man_pages() -> dict[str, str]:
    """Return the source of each man page, by its file name."""
    spec = importlib.util.spec_from_file_location("man", MAN)
    assert spec is not None
    assert spec.loader is not None
    module = ModuleType("man")
    module.__file__ = str(MAN)
    spec.loader.exec_module(module)
    return module.pages()


def toctree(caption: str, pages: list[str]) -> str:
    """Return a list of pages, for the index."""
    return "\n".join(["```{toctree}", ":maxdepth: 1", f":caption: {caption}", "", *pages, "```", ""])


def main(directory: str) -> None:
    """Write all sources into a directory."""
    target = Path(directory)
    documents = sorted((CHECKOUT / "docs").glob("*.md"))
    for path in documents:
        # What is no document is shown as it is called.
        text = re.sub(r"\[([^]]+)\]\((?!https?:|#|[\w-]+\.md)[^)]+\)", r"\1", path.read_text())
        (target / path.name).write_text(text)
    manual = man_pages()
    (target / "man").mkdir()
    for name, text in manual.items():
        (target / "man" / f"{name}.rst").write_text(text)
    (target / "api").mkdir()
    for module, heading in REFERENCE:
        title = f"{module}: {heading[0].lower()}{heading[1:]}"
        options = "   :members:\n   :undoc-members:\n"
        if module == "moorage.client.events":
            options += "   :exclude-members: Event, PlainEvent\n"  # those are in moorage.client
        text = f"{title}\n{'=' * len(title)}\n\n.. automodule:: {module}\n{options}"
        (target / "api" / f"{module}.rst").write_text(text)
    readme = (CHECKOUT / "README.md").read_text().replace("](docs/", "](")
    index = [
        re.sub(r"\[([^]]+)\]\((?!https?:|#|[\w-]+\.md)[^)]+\)", r"\1", readme),
        toctree("Pages", [path.stem for path in documents]),
        toctree("Man pages", [f"man/{name}" for name in manual]),
        toctree("Reference", [f"api/{module}" for module, _ in REFERENCE]),
    ]
    (target / "index.md").write_text("\n".join(index))


if __name__ == "__main__":
    main(sys.argv[1])
