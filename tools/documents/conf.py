"""Configuration of Sphinx, for tools/docs."""

import re
from pathlib import Path
from typing import Any

VERSION = Path(__file__).parents[2] / "service" / "moorage" / "__init__.py"

project = "moorage"
copyright = "the authors of moorage"  # noqa: A001  # Sphinx's name for it
release = re.findall(r'__version__ = "(.*)"', VERSION.read_text())[0]
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "alabaster"
html_theme_options = {"page_width": "1100px", "description": "Machines and their scopes, over varlink"}
html_show_sourcelink = False
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
# moorage.client has what its modules define, and Forgotten is an event as well as an exception.
suppress_warnings = ["ref.python"]
napoleon_use_ivar = True
napoleon_use_rtype = False


def setup(app: Any) -> None:
    """Leave out what msgspec adds to each Struct."""
    app.connect("autodoc-skip-member", _is_of_msgspec)


def _is_of_msgspec(_app: Any, _what: str, name: str, _obj: object, skip: bool, _options: Any) -> bool:  # noqa: FBT001
    return skip or name.startswith("__struct_") or name == "__match_args__"
