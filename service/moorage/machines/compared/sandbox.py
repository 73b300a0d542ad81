"""The sandbox of helpers in a user's service manager, which cannot do all of it, nor any without user namespaces.

It sets up what it can in a user namespace. Where users may have none, it runs the program all the same.

Pure: no I/O.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from moorage.machines.limits import Difference, Facts

_DEFAULTS: Final[Mapping[str, str]] = {
    "ProtectSystem": "strict", "ProtectHome": "tmpfs", "PrivateTmp": "yes", "PrivateNetwork": "yes",
}  # fmt: skip
"""What helpers have by default that takes a user namespace, as a unit file has it (`moorage.machines.properties`)."""

_OFF: Final = (False, "no", "off", "")


def lacking(facts: Facts) -> Iterator[Difference]:
    """Return the protections that a helper does not have, though they are its default or were asked for."""
    if not facts.user or not facts.helper:
        return
    if facts.properties.get("DynamicUser", True) is True:
        reason = "a user's service manager runs all of its services as that user"
        yield Difference("DynamicUser", "yes", None, reason)
    if "PrivateDevices" not in facts.properties:
        reason = "it is no default here: without user namespaces a user's service manager could not start the helper"
        yield Difference("PrivateDevices", "yes", None, reason)
    if facts.process is None or facts.process.namespaced is not False:
        return
    for name, default in _DEFAULTS.items():
        value = facts.properties.get(name, default)
        if value not in _OFF:
            shown = "yes" if value is True else str(value)
            yield Difference(name, shown, None, "this user's service manager can make no user namespaces")
