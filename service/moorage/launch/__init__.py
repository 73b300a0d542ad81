"""The library for launchers: hold a process until its machine is registered, and keep the lease of the machine."""

from moorage.launch.errors import BadCommand, HolderGone, StartFailed
from moorage.launch.lease import keep_lease
from moorage.launch.payload import HOLD_SECONDS, Payload, hold

__all__ = ["HOLD_SECONDS", "BadCommand", "HolderGone", "Payload", "StartFailed", "hold", "keep_lease"]
