"""Delegation to the processes of a unit, and the attributes of a service's process.

Where the service manager does not get what it wants for a process, it takes what it gets.

Pure: no I/O.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from moorage.machines.compared.values import below, limit_text, missing, wanted_number
from moorage.machines.limits import Difference, Facts
from moorage.pid1.manager import Json


def delegated(name: str, value: Json, facts: Facts) -> Iterator[Difference]:
    """Compare the controllers that are delegated by name."""
    there = set((facts.kernel.read("cgroup.controllers") or "").split())
    names = value if isinstance(value, list) else []
    for controller in names:
        # Those with "bpf-" are words of the manager's own.
        if isinstance(controller, str) and not controller.startswith("bpf-") and controller not in there:
            yield Difference(name, controller, None, missing(f"{controller}.", facts))


def subgroup(name: str, value: Json, facts: Facts) -> Iterator[Difference]:
    """Return that a scope has nobody who would move its processes."""
    if facts.scope and value:
        yield Difference(name, str(value), None, "systemd moves no process of a scope into a subgroup")


RESOURCES: Final[Mapping[str, str]] = {
    "LimitAS": "Max address space", "LimitCORE": "Max core file size", "LimitCPU": "Max cpu time",
    "LimitDATA": "Max data size", "LimitFSIZE": "Max file size", "LimitLOCKS": "Max file locks",
    "LimitMEMLOCK": "Max locked memory", "LimitMSGQUEUE": "Max msgqueue size", "LimitNICE": "Max nice priority",
    "LimitNOFILE": "Max open files", "LimitNPROC": "Max processes", "LimitRSS": "Max resident set",
    "LimitRTPRIO": "Max realtime priority", "LimitRTTIME": "Max realtime timeout",
    "LimitSIGPENDING": "Max pending signals", "LimitSTACK": "Max stack size",
}  # fmt: skip
_NOT_ALLOWED: Final = "the service manager is not allowed more"


def resource(name: str, value: Json, facts: Facts) -> Iterator[Difference]:
    """Compare a limit of setrlimit(2), which ``setrlimit_closest()`` lowers; the program may lower it too."""
    wanted = wanted_number(value)
    if facts.process is None:
        return
    soft, hard = facts.process.limits[RESOURCES[name.removesuffix("Soft")]]
    effective = soft if name.endswith("Soft") else hard
    if below(effective, wanted):
        yield Difference(name, limit_text(wanted), limit_text(effective), _NOT_ALLOWED)


def nice(name: str, value: Json, facts: Facts) -> Iterator[Difference]:
    """Compare what ``setpriority_closest()`` raises."""
    if facts.process is not None and isinstance(value, int) and facts.process.nice > value:
        yield Difference(name, str(value), str(facts.process.nice), _NOT_ALLOWED)


def oom_score(name: str, value: Json, facts: Facts) -> Iterator[Difference]:
    """Compare what the service manager may not lower."""
    if facts.process is not None and isinstance(value, int) and facts.process.oom_score_adj > value:
        yield Difference(name, str(value), str(facts.process.oom_score_adj), _NOT_ALLOWED)
