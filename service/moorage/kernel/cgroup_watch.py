"""Control groups watched for changes by inotify (Documentation/admin-guide/cgroup-v2.rst of the kernel)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from moorage.kernel.cgroup import ROOT
from moorage.kernel.inotify import (
    IN_ATTRIB,
    IN_IGNORED,
    IN_MODIFY,
    IN_ONESHOT,
    IN_ONLYDIR,
    IN_Q_OVERFLOW,
    Event,
    Inotify,
    Readiness,
)

STATE: Final = {"cgroup.events": IN_MODIFY}
"""Whether there are processes in a group, and whether it is frozen."""

LIMITS: Final = {
    "": IN_ATTRIB | IN_ONLYDIR | IN_ONESHOT,
    "memory.events": IN_MODIFY | IN_ONESHOT,
    "pids.events.local": IN_MODIFY | IN_ONESHOT,
}
"""Whether its limits were reached. ``memory.events`` changes with ``memory.events.local``, and with those of groups
below; systemd-oomd leaves its notes on the group itself. Each is reported once: the owner of a group may change what
is noted on it without end, and that would fill the queue."""


class InotifyWatch:
    """Tells when files of control groups change: one inotify instance for all groups (inotify(7)).

    Raises:
        OSError: no inotify instance is left (fs.inotify.max_user_instances).
    """

    def __init__(
        self,
        readiness: Readiness,
        changed: Callable[[str], None],
        overflow: Callable[[], None],
        files: Mapping[str, int],
    ) -> None:
        """Start watching.

        Args:
            readiness: calls back when there are events.
            changed: called with the path of a group of which a file may have changed.
            overflow: called when the kernel dropped events (fs.inotify.max_queued_events).
            files: what of a group is watched, and for which events; an empty name is the group itself.
        """
        self._files = files
        self._groups: dict[int, tuple[str, str]] = {}
        self._watches: dict[str, dict[str, int]] = {}
        self._changed, self._overflow = changed, overflow
        self._inotify = Inotify(readiness, self._told)

    def __len__(self) -> int:
        return len(self._groups)

    def add(self, control_group: str) -> bool:
        """See `Watch`."""
        for file, mask in self._files.items():
            before = self._watches.get(control_group, {}).get(file)
            # One that was reported is watched no more, but the word of that may still be in the queue, or lost.
            if before is None or mask & IN_ONESHOT:
                try:
                    watch = self._inotify.add(f"{ROOT}{control_group}/{file}", mask)
                except FileNotFoundError:  # no such group, or no such controller
                    continue
                if before is not None:
                    del self._groups[before]
                self._watches.setdefault(control_group, {})[file] = watch
                self._groups[watch] = control_group, file
        return control_group in self._watches

    def remove(self, control_group: str) -> None:
        """See `Watch`."""
        for watch in self._watches.pop(control_group, {}).values():
            # An event for it may be in the queue still, and is just unknown then.
            del self._groups[watch]
            self._inotify.remove(watch)

    def close(self) -> None:
        """See `Watch`."""
        self._inotify.close()

    def _told(self, events: Sequence[Event]) -> None:
        # A group that changes several times at once is worth one look.
        changed: dict[str, None] = {}
        for event in events:
            if event.mask & IN_Q_OVERFLOW:
                self._overflow()
            elif (found := self._groups.get(event.watch)) is not None:
                group, file = found
                if event.mask & IN_IGNORED:  # the group is gone, or it was to be reported once
                    del self._groups[event.watch], self._watches[group][file]
                    if not self._watches[group]:
                        del self._watches[group]
                changed[group] = None
        for group in changed:
            self._changed(group)
