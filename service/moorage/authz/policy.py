"""Who may do what, as one table. Pure: the caller's uid comes from the socket, the machine's owner from the registry.

| action   | system instance | user instance                    |
| -------- | --------------- | -------------------------------- |
| inspect  | root            | root, the user                   |
| register | root            | root; the user's own processes   |
| manage   | root            | root, the user                   |
| service  | root            | root, the user                   |

Without polkit there is nobody to ask, and the system instance is root's alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto


class Action(Enum):
    """What a call wants to do.

    Attributes:
        INSPECT: see machines, their addresses and limits.
        REGISTER: register a machine, with or without a scope.
        MANAGE: stop, kill or forget a machine.
        SERVICE: see or change how the service itself runs (its environment, its log level).
    """

    INSPECT = auto()
    REGISTER = auto()
    MANAGE = auto()
    SERVICE = auto()


@dataclass(frozen=True, slots=True)
class Policy:
    """The rules of one instance.

    Attributes:
        user: uid that the instance serves; None for the system instance.
    """

    user: int | None

    def allows(self, action: Action, uid: int) -> bool:
        """Whether a caller may do something.

        Args:
            action: what.
            uid: the caller's effective uid when it connected.
        """
        del action  # one rule for all of them until polkit can be asked about each
        return uid == 0 or uid == self.user

    def may_claim(self, uid: int, process_uid: int) -> bool:
        """Whether a caller may have a process registered as the leader of a machine."""
        return uid == 0 or (uid == self.user and uid == process_uid)
