"""io.systemd.Metrics: families, and values as they go over the wire."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import pytest

from moorage.api.metrics import machines, service
from moorage.api.metrics.families import FAMILIES, PREFIX, Series, Values, about, series
from moorage.api.metrics.types import ListOut
from moorage.kernel.cgroup import Hierarchy
from moorage.machines.ceilings import Known, ceiling
from moorage.wire.message import prepared_reply


@pytest.mark.parametrize("fields", [{}, {"type": "user"}, {"helper": "a", "b": 'quo"te'}])
@pytest.mark.parametrize("value", [0, 2**63, "text", 'quo"te'])
@pytest.mark.parametrize("name", [None, "web"])
def test_a_message_is_what_a_reply_would_be(
    fields: dict[str, str], value: int | str, name: str | None
) -> None:
    family = "Phase" if isinstance(value, str) else "CpuUsage"
    message = series(family, **fields).message(value, b"" if name is None else about(name))
    reply = ListOut(name=PREFIX + family, object=name, fields=fields or None, value=value)
    assert message.endswith(b"\0")
    assert json.loads(message[:-1]) == json.loads(prepared_reply(reply)[:-1])


def test_values_about_one_object_are_the_same_messages() -> None:
    found = [
        (series("CpuUsage", type="100%d"), 7),
        (series("Phase"), "run%bning"),
        (series("TasksCurrent"), 0),
    ]
    for name in (about("web"), about("50%d")):
        values = Values(name)
        for each, value in found:
            values.add(each, value)
        assert values.messages() == b"".join(each.message(value, name) for each, value in found)


def test_families_are_named_as_those_of_systemd_are() -> None:
    assert list(FAMILIES) == sorted(FAMILIES)
    for name, family in FAMILIES.items():
        assert re.fullmatch(r"[A-Z][A-Za-z]+", name), name
        assert family.description[0].isupper()
        assert not family.description.endswith(".")


def test_the_page_has_the_families() -> None:
    page = (Path(__file__).parents[3] / "docs" / "metrics.md").read_text()
    rows = [f"| `{name}` | {each.type} | {each.description} |" for name, each in FAMILIES.items()]
    assert "\n".join(rows) in page


def test_every_series_is_of_a_family_that_is_described() -> None:
    made = [value for module in (machines, service) for value in vars(module).values()]
    assert any(isinstance(value, Series) for value in made)
    with pytest.raises(KeyError):
        series("Strange")


class Groups:
    """Control groups with limits, and how often each was read."""

    def __init__(self, limits: Mapping[str, str | None]) -> None:
        self.limits = limits
        self.read: list[str] = []

    def attribute(self, control_group: str, name: str) -> str | None:
        """See `Hierarchy`."""
        assert name == "memory.max"
        self.read.append(control_group)
        return self.limits.get(control_group)


@pytest.mark.parametrize(
    ("limits", "lowest"),
    [
        ({"/a": "max", "/a/b": "max", "/a/b/c": "max"}, None),
        ({"/a": "max", "/a/b": "max", "/a/b/c": "7"}, 7),
        ({"/a": "5", "/a/b": "max", "/a/b/c": "7"}, 5),
        ({"/a": "5", "/a/b": "3", "/a/b/c": "max"}, 3),
        ({"/a": "5", "/a/b": None, "/a/b/c": None}, 5),
        ({}, None),
        ({"/a/b/c": "0"}, 0),
    ],
)
def test_the_lowest_limit_is_the_one_that_holds(
    limits: Mapping[str, str | None], lowest: int | None
) -> None:
    groups, known = Groups(limits), Known()
    for _ in range(2):
        assert ceiling(cast("Hierarchy", groups), "/a/b/c", "memory.max", known) == lowest
    assert sorted(groups.read) == ["/a", "/a/b", "/a/b/c", "/a/b/c"], "groups above are read once"
