"""Collects what moored says whenever somebody scrapes the exporter."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeAlias, TypeVar

import msgspec
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric, SummaryMetricFamily
from prometheus_client.registry import Collector

from moorage.exporter.rules import PREFIX, RULES, Rule
from moorage.exporter.scrape import TooMany, Value, values
from moorage.steps.blocking import take
from moorage.wire.errors import ProtocolError, VarlinkError

_log = logging.getLogger(__name__)

Labels: TypeAlias = tuple[str, ...]
Meaning: TypeAlias = tuple[Rule, tuple[str | None, ...]]
"""A rule, and the values of its labels; None for the object that a value is about."""
M = TypeVar("M", bound=Metric)


class Machines(Collector):
    """Collects.

    Args:
        metrics: path of moored's socket for metrics, which is there while it runs.
        service: path of its socket for calls, which is there also while it is idle.
        seconds: how long moored may take.
    """

    def __init__(self, metrics: str, service: str, seconds: float) -> None:
        self._metrics = metrics
        self._service = service
        self._seconds = seconds
        self._turn = threading.Lock()

    def describe(self) -> Iterable[Metric]:
        """Describe nothing: what there is depends on moored."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Return all metrics; those of the exporter alone where moored does not answer."""
        with self._turn:  # several at once would be more work for moored, and say the same
            begun = time.monotonic()
            found = self._found()
            took = time.monotonic() - begun
        idle = found is None and self._is_idle()
        yield GaugeMetricFamily("moorage_up", "Whether moored has answered.", float(found is not None))
        yield GaugeMetricFamily(
            "moorage_idle", "Whether moored is not running since it has nothing to do.", float(idle)
        )
        yield GaugeMetricFamily("moorage_scrape_duration_seconds", "Time that moored took to answer.", took)
        yield from translated(found or ())

    def _found(self) -> list[Value] | None:
        try:
            return take(values(self._metrics, self._seconds))
        except (OSError, TooMany, ProtocolError, VarlinkError, msgspec.ValidationError) as error:
            _log.debug("Failed to ask moored, ignoring: %s", error)
            return None

    def _is_idle(self) -> bool:
        # It removes its socket for metrics when it exits. One that was killed leaves it there.
        return os.path.exists(self._service) and not os.path.lexists(self._metrics)


def translated(found: Iterable[Value]) -> Iterator[Metric]:
    """Return the metrics that values are for, each with all its samples. What is not known here is left out."""
    counters: dict[str, CounterMetricFamily] = {}
    gauges: dict[str, GaugeMetricFamily] = {}
    counts: dict[str, dict[Labels, float]] = {}
    sums: dict[str, dict[Labels, float]] = {}
    summaries: dict[str, Rule] = {}
    # The same fields come with each machine: which rules they are for, and what of the labels they are, is found once.
    meanings: dict[tuple[str, str], list[Meaning]] = {}
    for value in found:
        key = value.name, repr(value.fields)
        if (meaning := meanings.get(key)) is None:
            meaning = meanings[key] = _meanings(value)
        about = value.object or ""
        for rule, known in meaning:
            labels = [about if each is None else each for each in known]
            number = _number(rule, value, labels)
            if number is None:
                continue
            if rule.kind == "counter":
                _family(counters, CounterMetricFamily, rule).add_metric(labels, number)
            elif rule.kind in {"gauge", "word"}:
                _family(gauges, GaugeMetricFamily, rule).add_metric(labels, number)
            else:
                summaries[rule.metric] = rule
                (counts if rule.kind == "count" else sums).setdefault(rule.metric, {})[tuple(labels)] = (
                    number
                )
    yield from counters.values()
    yield from gauges.values()
    for name, rule in summaries.items():
        summary = SummaryMetricFamily(name, rule.help, labels=list(rule.labels))
        for labels, number in counts.get(name, {}).items():
            if (total := sums.get(name, {}).get(labels)) is not None:
                summary.add_metric(labels, int(number), total)
        yield summary


def _meanings(value: Value) -> list[Meaning]:
    """Return the rules for all values of this family with these fields."""
    fields = value.fields or {}
    return [
        (rule, tuple(str(fields.get(field, "")) if field else None for field in rule.labels.values()))
        for rule in RULES.get(value.name.removeprefix(PREFIX), ())
        if all(fields.get(name) == wanted for name, wanted in rule.where.items())
    ]


def _family(known: dict[str, M], kind: Callable[..., M], rule: Rule) -> M:
    if (family := known.get(rule.metric)) is None:
        family = known[rule.metric] = kind(rule.metric, rule.help, labels=list(rule.labels))
    return family


def _number(rule: Rule, value: Value, labels: list[str]) -> float | None:
    """Return the number of a sample; None if the value is not what it should be."""
    found = value.value
    if rule.kind != "word":
        return (
            found / rule.divisor if isinstance(found, int | float) and not isinstance(found, bool) else None
        )
    if not isinstance(found, str):
        return None
    if rule.word is not None:
        return float(found == rule.word)
    labels[-1] = found
    return 1.0
