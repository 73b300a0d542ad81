"""Settings that the kernel has in force: attributes of control groups, drivers, limits of processes.

Nothing here waits for anybody; :mod:`moorage.machines.compared` says what it is compared with.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from moorage.kernel import cgroup
from moorage.machines.limits import Process

_BEFORE_EXECUTION: Final = ("(", "systemd")
"""How the name of a process begins while the manager prepares it (``rename_process_from_path()`` of systemd)."""


class Group:
    """A control group as it is when it is looked at: each attribute is read once, for all properties."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._own: dict[str, str | None] = {}
        self._above: dict[str, list[tuple[str, str]]] = {}

    def read(self, attribute: str) -> str | None:
        """See :class:`moorage.machines.limits.Kernel`."""
        if attribute not in self._own:
            self._own[attribute] = cgroup.attribute(self._path, attribute)
        return self._own[attribute]

    def above(self, attribute: str) -> list[tuple[str, str]]:
        """See :class:`moorage.machines.limits.Kernel`."""
        if attribute not in self._above:
            self._above[attribute] = above(self._path.rpartition("/")[0], attribute)
        return self._above[attribute]


def above(path: str, attribute: str) -> list[tuple[str, str]]:
    """Return the text of an attribute in a control group and those above it, with their paths, the nearest first."""
    found: list[tuple[str, str]] = []
    while path:
        text = cgroup.attribute(path, attribute)
        if text is not None:
            found.append((path, text))
        path = path.rpartition("/")[0]
    return found


def drivers() -> dict[str, frozenset[str]]:
    """Return the names of drivers in /proc/devices, by kind: "char" and "block"."""
    found: dict[str, set[str]] = {"char": set(), "block": set()}
    kind = "char"
    for line in Path("/proc/devices").read_text(errors="replace").splitlines():
        if line.startswith(("Character", "Block")):
            kind = "char" if line.startswith("Character") else "block"
        elif len(words := line.split(maxsplit=1)) == 2:
            found[kind].add(words[1])
    return {kind: frozenset(names) for kind, names in found.items()}


def process(pid: int) -> Process | None:
    """Read what a process has (proc(5)); None if it is gone, or if its program is not executed yet."""
    try:
        limits = Path(f"/proc/{pid}/limits").read_text()
        before, _, after = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")
        score = int(Path(f"/proc/{pid}/oom_score_adj").read_text())
        fields = after.split()
        namespaced = _is_namespaced(pid, int(fields[1]))
        nice = int(fields[16])
    except (OSError, ValueError, IndexError):
        return None
    if before.partition("(")[2].startswith(_BEFORE_EXECUTION):
        return None
    found: dict[str, tuple[int | None, int | None]] = {}
    for line in limits.splitlines()[1:]:
        soft, hard = line[26:].split()[:2]  # "%-25s %-20s %-20s %-10s"
        found[line[:26].strip()] = _resource(soft), _resource(hard)
    return Process(found, nice, score, namespaced)


def _is_namespaced(pid: int, manager: int) -> bool:
    """Whether a process is in another user namespace than the manager that has started it, by what uids mean there."""
    return Path(f"/proc/{pid}/uid_map").read_text() != Path(f"/proc/{manager}/uid_map").read_text()


def _resource(text: str) -> int | None:
    return None if text == "unlimited" else int(text)
