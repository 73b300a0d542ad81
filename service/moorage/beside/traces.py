"""What machined leaves below /run of machines that are no more, and what is done about it.

machined keeps a file for each of its machines, and a link to it by the name of its unit. When it starts and finds the
leader of a machine gone, it stops that unit by its name, whatever it is by then (``machine_may_gc()``,
``machine_stop()``): the scope of a successor, or a service that was started again. So nothing may be left there of a
machine that it does not know to be over, because it does not run, or has lost its bus. Of the files only the names are
looked at, and nothing is removed but what was published by this service, or is in the way of a scope of its own.
"""

from __future__ import annotations

import logging
import os

import trio

from moorage.names import is_host_name

GONE_SECONDS = 1.0
"""For how long machined may take to drop a machine that has ended, s: it takes a few ms, and needs the bus for it."""

TURN_SECONDS = 0.002
"""First pause between two looks, s; each is twice the last."""

_log = logging.getLogger(__name__)


class Traces:
    """The traces of machines, by their units.

    Args:
        directory: in which machined keeps its files.
    """

    def __init__(self, directory: str) -> None:
        self._directory = directory

    def are_there(self, unit: str) -> bool:
        """Whether machined has, or had when it last ran, a machine in a unit."""
        return self._found(unit) is not None

    async def see_off(self, unit: str) -> None:
        """Wait until machined has dropped the machine of a unit that has ended; then remove what is left of it."""
        if await self.remain(unit):
            self.remove(unit)

    async def remain(self, unit: str) -> bool:
        """Wait for machined to drop the machine of a unit; return whether it has not. What comes after is another."""
        found, pause = self._found(unit), TURN_SECONDS
        deadline = trio.current_time() + GONE_SECONDS
        while found is not None and self._found(unit) == found:
            if trio.current_time() >= deadline:
                return True
            await trio.sleep(pause)
            pause *= 2
        return False

    def remove(self, unit: str) -> None:
        """Remove what there is of the machine of a unit."""
        try:
            name = os.readlink(self._link(unit))
            os.unlink(self._link(unit))
            if is_host_name(name):
                os.unlink(f"{self._directory}/{name}")
        except OSError as error:
            _log.warning("Failed to remove what systemd-machined has left of %s, ignoring: %s", unit, error)
        else:
            _log.info("Removed what systemd-machined has left of %s.", unit)

    def _found(self, unit: str) -> tuple[int, int] | None:
        """Return what tells the link of a unit from later ones."""
        try:
            found = os.lstat(self._link(unit))
        except OSError:
            return None
        return found.st_ino, found.st_ctime_ns

    def _link(self, unit: str) -> str:
        return f"{self._directory}/unit:{unit}"
