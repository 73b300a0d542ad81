"""What the exporter makes of values: names, units, labels; and that all of it is there."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.core import Metric

from moorage.api.metrics.families import FAMILIES, PREFIX
from moorage.exporter.collector import translated
from moorage.exporter.rules import RULES
from moorage.exporter.scrape import Value

EXAMPLES = Path(__file__).parents[3] / "examples"
PAGE = Path(__file__).parents[3] / "docs" / "metrics.md"
OWN = {"moorage_up", "moorage_idle", "moorage_scrape_duration_seconds"}


def value(family: str, number: Any, machine: str | None = "web", **fields: Any) -> Value:
    return Value(f"{PREFIX}{family}", number, machine, fields or None)


def samples(*found: Value) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    metrics: list[Metric] = list(translated(found))
    assert len({metric.name for metric in metrics}) == len(metrics), (
        "each metric comes once, with all its samples"
    )
    return {
        (each.name, tuple(sorted(each.labels.items()))): each.value
        for metric in metrics
        for each in metric.samples
    }


def metric_names() -> set[str]:
    """The names of all series."""
    suffixes = {"counter": "_total", "count": "_count", "sum": "_sum"}
    return OWN | {rule.metric + suffixes.get(rule.kind, "") for rules in RULES.values() for rule in rules}


def test_every_family_is_exported() -> None:
    assert FAMILIES.keys() - RULES.keys() == {"Uptime"}, "which the time of the start tells"
    assert RULES.keys() <= FAMILIES.keys()


def test_names_are_those_that_prometheus_recommends() -> None:
    for rules in RULES.values():
        for rule in rules:
            assert re.fullmatch(r"moorage_[a-z]+(_[a-z]+)*", rule.metric)
            assert not rule.metric.endswith(("_total", "_count", "_sum", "_usec", "_nsec"))
            assert all(re.fullmatch(r"[a-z]+", label) for label in rule.labels)
            assert rule.divisor == 1 or rule.metric.endswith("_seconds")
            assert rule.help.endswith(".") or rule.metric == "moorage_build_info"


def test_base_units_and_labels() -> None:
    web = ("machine", "web")
    assert samples(
        value("CpuUsage", 1_500_000_000, type="user"),
        value("CpuUsage", 500_000_000, type="system"),
        value("CpuUsage", 2_000_000_000, type="total"),
        value("MemoryUsage", 4096, type="current"),
        value("PressureTime", 250_000, resource="io", type="full"),
        value("HelperState", "activating", helper="fs"),
        value("Phase", "stopping"),
        value("FreezerState", "frozen"),
        value("Version", "1.2", None),
        value("ManagerReplies", 2, None, call="StopUnit"),
        value("ManagerReplyTime", 3_000_000, None, call="StopUnit"),
    ) == {
        ("moorage_machine_cpu_seconds_total", (web, ("mode", "user"))): 1.5,
        ("moorage_machine_cpu_seconds_total", (web, ("mode", "system"))): 0.5,
        ("moorage_machine_memory_bytes", (web,)): 4096,
        ("moorage_machine_pressure_stalled_seconds_total", (web, ("resource", "io"))): 0.25,
        ("moorage_helper_active", (("helper", "fs"), web)): 0,
        ("moorage_machine_phase", (web, ("phase", "stopping"))): 1,
        ("moorage_machine_frozen", (web,)): 1,
        ("moorage_build_info", (("version", "1.2"),)): 1,
        ("moorage_manager_reply_seconds_count", (("call", "StopUnit"),)): 2,
        ("moorage_manager_reply_seconds_sum", (("call", "StopUnit"),)): 3,
    }


@pytest.mark.parametrize(
    "strange",
    [
        value("OfALaterVersion", 1),
        Value("io.systemd.CGroup.CpuUsage", 1, "web.scope", {"type": "user"}),
        value("MemoryUsage", "much", type="current"),
        value("MemoryUsage", None, type="current"),
        value("MemoryUsage", True, type="current"),
        value("MemoryUsage", 1, type="other"),
        value("Phase", 1),
        value("ManagerReplies", 1, None, call="WithoutItsTime"),
    ],
)
def test_what_is_not_known_is_left_out(strange: Value) -> None:
    assert samples(strange) == {}


def test_the_page_has_the_metrics() -> None:
    named = set(re.findall(r"`(moorage_[a-z_]+)(?:\{[^`]*\})?`", PAGE.read_text()))
    assert metric_names() - named == set()
    assert named - metric_names() == set()


def queries() -> list[str]:
    """All expressions of the dashboard, and of the alerts."""
    board = json.loads((EXAMPLES / "grafana" / "moorage.json").read_text())
    shown = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    rules = (EXAMPLES / "prometheus" / "moorage.rules.yml").read_text()
    return [*shown, rules]


@pytest.mark.parametrize("query", queries())
def test_queries_are_about_what_is_exported(query: str) -> None:
    assert set(re.findall(r"\bmoorage_[a-z_]+", query)) <= metric_names()


def test_every_panel_has_a_place_of_its_own() -> None:
    panels = json.loads((EXAMPLES / "grafana" / "moorage.json").read_text())["panels"]
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels]
    assert len(set(places)) == len(panels) == len({panel["id"] for panel in panels})
