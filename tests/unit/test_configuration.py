"""The table in docs/configuration.md, the man page and the example, held against the options."""

import os
import re
from pathlib import Path

from moorage.cli.commands.options import SERVICE_SECONDS
from moorage.configuration.files import Locations
from moorage.configuration.loading import load
from moorage.configuration.options import OPTIONS, Span, name_of, written
from moorage.configuration.settings import HOUR, SECOND, Loaded, Settings

CHECKOUT = Path(__file__).parents[2]
PAGE = (CHECKOUT / "docs" / "configuration.md").read_text()


def test_the_table_has_each_option_as_it_is() -> None:
    rows = [line for line in PAGE.splitlines() if line.startswith("| `")]
    assert rows == [
        f"| `{name_of(field)}` | {option.kind} | {written(Settings(), field)} "
        f"| {'restart' if option.at_restart else 'reload'} | {option.about} |"
        for field, option in OPTIONS.items()
    ]


def test_the_example_has_each_option_with_its_default(tmp_path: Path) -> None:
    text = (CHECKOUT / "examples" / "moored.conf").read_text()
    path = tmp_path / "moored.conf"
    locations = Locations((str(path),), (), frozenset({os.geteuid()}))
    path.write_text(text)
    assert load(locations, {}, 65_536) == Loaded(Settings(), {}, ())
    path.write_text(re.sub(r"^#(?=\w)", "", text, flags=re.MULTILINE))
    found = load(locations, {}, 65_536)
    assert (found.settings, found.problems) == (Settings(), ())
    assert list(found.sources) == list(Settings.__struct_fields__)
    remarks = text.split("\n\n")[1:]
    for remark, option in zip(remarks, OPTIONS.values(), strict=True):
        assert remark.startswith(f"# {option.about}\n")
        assert f"# {option.kind}.".lower() in remark.lower()
        assert ("after a restart" in remark) == option.at_restart


def test_the_command_line_waits_for_as_long_as_the_service_may_take() -> None:
    spans = [
        option.kind.most
        for field, option in OPTIONS.items()
        if field.endswith("_timeout_usec") and field != "idle_timeout_usec" and isinstance(option.kind, Span)
    ]
    assert len(spans) == 3
    assert max(spans) == HOUR == SERVICE_SECONDS * SECOND
