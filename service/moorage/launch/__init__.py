"""The library for launchers: hold a process until its machine is registered, and execute its command then.

:mod:`moorage.launch.trio`, :mod:`moorage.launch.asyncio` and :mod:`moorage.launch.blocking` have ``hold()``, and the
payload that it returns.
"""

from moorage.launch.command import Identity, Settings, Text
from moorage.launch.errors import BadCommand, HolderGone, StartFailed, TooSlow
from moorage.launch.payload import HOLD_SECONDS

__all__ = [
    "HOLD_SECONDS",
    "BadCommand",
    "HolderGone",
    "Identity",
    "Settings",
    "StartFailed",
    "Text",
    "TooSlow",
]
