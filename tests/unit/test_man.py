"""The man pages: made without a warning, and complete."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from moorage.configuration.options import name_of, written
from moorage.configuration.settings import Settings

CHECKOUT = Path(__file__).parents[2]
TOOL = CHECKOUT / "tools" / "packaging" / "man.py"


@pytest.fixture(scope="module")
def sources() -> dict[str, str]:
    """The source of each page."""
    spec = importlib.util.spec_from_file_location("man", TOOL)
    assert spec is not None
    assert spec.loader is not None
    module = ModuleType("man")
    module.__file__ = str(TOOL)
    spec.loader.exec_module(module)
    return module.pages()


def test_pages_are_made_without_a_warning(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, TOOL, tmp_path], capture_output=True, text=True, check=False, timeout=50
    )
    assert (done.returncode, done.stderr) == (0, "")
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [
        "io.moorage.Machine.7", "moorage-exporter.8", "moorage.helpers.5", "moorctl.1", "moored.8", "moored.conf.5",
    ]  # fmt: skip
    assert all(re.search(r"^\.TH ", path.read_text(), re.MULTILINE) for path in tmp_path.iterdir())


def test_every_command_has_a_section(sources: dict[str, str]) -> None:
    shown = subprocess.run(
        [sys.executable, "-c", "from moorage.cli import main; main()", "--help"],
        capture_output=True, text=True, check=True, timeout=50,
    ).stdout  # fmt: skip
    names = re.findall(r"^  ([a-z-]+)  ", shown.split("Commands:")[1], re.MULTILINE)
    assert len(names) > 10
    for name in names:
        assert re.search(rf"^{name}( .*)?\n-+$", sources["moorctl.1"], re.MULTILINE), name


def test_the_interface_is_in_its_page_whole(sources: dict[str, str]) -> None:
    interface = (CHECKOUT / "interfaces" / "io.moorage.Machine.varlink").read_text()
    names = re.findall(r"^(?:method|error|type) (\w+)", interface, re.MULTILINE)
    page = sources["io.moorage.Machine.7"]
    assert [name for name in names if not re.search(rf"^{name}\n-+$", page, re.MULTILINE)] == []


@pytest.mark.parametrize("field", Settings.__struct_fields__)
def test_the_options_are_in_the_page(sources: dict[str, str], field: str) -> None:
    entry = rf"^{name_of(field)}\n    .*Default: {re.escape(written(Settings(), field))}\."
    assert re.search(entry, sources["moored.conf.5"], re.MULTILINE)


@pytest.mark.parametrize(
    "field", ["exec_start", "type", "sockets", "after", "on_failure", "restart", "properties"]
)
def test_the_keys_of_a_helper_are_in_the_page(sources: dict[str, str], field: str) -> None:
    first, *rest = field.split("_")
    key = first + "".join(part.title() for part in rest)
    assert re.search(rf"^{key}$", sources["moorage.helpers.5"], re.MULTILINE), key
