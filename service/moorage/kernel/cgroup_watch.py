"""Control groups watched for changes of ``cgroup.events`` (Documentation/admin-guide/cgroup-v2.rst of the kernel)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from moorage.kernel.cgroup import ROOT
from moorage.kernel.inotify import IN_IGNORED, IN_MODIFY, IN_Q_OVERFLOW, Event, Inotify, Readiness


class InotifyWatch:
    """Tells when ``cgroup.events`` of a group changes: one inotify instance for all groups (inotify(7)).

    Raises:
        OSError: no inotify instance is left (fs.inotify.max_user_instances).
    """

    def __init__(
        self, readiness: Readiness, changed: Callable[[str], None], overflow: Callable[[], None]
    ) -> None:
        """Start watching.

        Args:
            readiness: calls back when there are events.
            changed: called with the path of a group whose ``cgroup.events`` may have changed.
            overflow: called when the kernel dropped events (fs.inotify.max_queued_events).
        """
        self._groups: dict[int, str] = {}
        self._watches: dict[str, int] = {}
        self._changed, self._overflow = changed, overflow
        self._inotify = Inotify(readiness, self._told)

    def __len__(self) -> int:
        return len(self._groups)

    def add(self, control_group: str) -> bool:
        """See `Watch`."""
        if control_group in self._watches:
            return True
        try:
            watch = self._inotify.add(f"{ROOT}{control_group}/cgroup.events", IN_MODIFY)
        except FileNotFoundError:
            return False
        self._groups[watch] = control_group
        self._watches[control_group] = watch
        return True

    def remove(self, control_group: str) -> None:
        """See `Watch`."""
        watch = self._watches.pop(control_group, None)
        if watch is None:
            return
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
            elif (group := self._groups.get(event.watch)) is not None:
                if event.mask & IN_IGNORED:
                    del self._groups[event.watch], self._watches[group]
                changed[group] = None
        for group in changed:
            self._changed(group)
