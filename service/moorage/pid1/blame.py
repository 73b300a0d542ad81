"""Which property of which unit a refusal of the manager is about: it says so only in the text, and not always.

Pure: no I/O.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

_DEPENDENCIES: Final = (
    "Requires", "Requisite", "Wants", "BindsTo", "PartOf", "Upholds", "Conflicts", "Before", "After", "OnSuccess",
    "OnFailure", "PropagatesReloadTo", "ReloadPropagatedFrom", "PropagatesStopTo", "StopPropagatedFrom",
    "JoinsNamespaceOf",
)  # fmt: skip
"""Those that may be created with a transient unit."""

_HINTS: Final = (
    # What the manager says without naming the property, and which it means.
    (re.compile(r"\bprocess\b|\bPID\b", re.IGNORECASE), ("PIDFDs", "PIDs")),
    (re.compile(r"Inappropriate ioctl|Bad file descriptor"), ("PIDFDs",)),  # not a pidfd
    (re.compile(r"\bslice\b|^(Invalid unit name|Unit name) '"), ("Slice",)),
    (re.compile(r"^Invalid unit name [^']"), _DEPENDENCIES),
    (re.compile(r"\bcontroller\b"), ("DelegateControllers", "DisableControllers")),
    (re.compile(r"^Delegation not available"), ("Delegate", "DelegateControllers", "DelegateSubgroup")),
    (re.compile(r"^Invalid control group name"), ("DelegateSubgroup",)),
    (re.compile(r"^Invalid interface name"), ("RestrictNetworkInterfaces", "BindNetworkInterface")),
    (re.compile(r"^(Invalid source|Invalid protocol|Invalid NFT)"), ("NFTSet",)),
    (re.compile(r"^Prefix length"), ("IPAddressAllow", "IPAddressDeny")),
    (re.compile(r"^Condition "), ("Conditions", "Asserts")),
)

_PATTERNS: Final = (
    r"(?<![\w-]){}=",
    r"(?:specified in|setting|value of|Invalid|type) {}\b",
    r"(?<![\w-]){}\b",
)
"""How the manager names a property in a sentence, the surest way first."""

_ALWAYS_SENT: Final = frozenset({"Description", "Slice", "PIDFDs"})
"""What could be wrong with these is among the hints."""


class Sent(NamedTuple):
    """Properties that were sent to the manager for one unit.

    Attributes:
        owner: whose unit it is, as a caller knows it; None for the unit that the call is about.
        names: all of them.
        chosen: those that a caller chose. The others are ours, and not to blame where that is not sure.
    """

    owner: str | None
    names: Sequence[str]
    chosen: Sequence[str] = ()


class Blamed(NamedTuple):
    """A property, or several ("CPUWeight, IOWeight"), and whose they are."""

    property: str
    owner: str | None


def blamed(error: str, text: str, sent: Sequence[Sent]) -> Blamed | None:
    """Return the property that a refusal is about; None if it does not say so, and could be about several.

    Args:
        error: name of the error.
        text: its message.
        sent: what was sent with the call.
    """
    name = _named(error, text, list(dict.fromkeys(name for each in sent for name in each.names)))
    if name is None:
        chosen = {name for each in sent for name in each.chosen}
        names = chosen or {name for each in sent for name in each.names} - _ALWAYS_SENT
        if len(names) != 1:
            return None
        (name,) = names
    return Blamed(name, next(_owners(name, sent), None))


def all_chosen(sent: Sequence[Sent]) -> Blamed | None:
    """Return all properties that a caller chose, for a refusal that does not say which it is about; None without."""
    names = list(dict.fromkeys(name for each in sent for name in each.chosen))
    if not names:
        return None
    owners = {each.owner for each in sent if each.chosen}
    return Blamed(", ".join(names), owners.pop() if len(owners) == 1 else None)


def _owners(name: str, sent: Sequence[Sent]) -> Iterator[str | None]:
    """Return whose a property is: those who chose it come first."""
    yield from (each.owner for each in sent if name in each.chosen)
    yield from (each.owner for each in sent if name in each.names)


def _named(error: str, text: str, names: Sequence[str]) -> str | None:
    if (match := re.match(r"Cannot set property (\S+), or unknown property", text)) is not None:
        return match[1]
    for pattern in _PATTERNS:
        for name in names:
            if re.search(pattern.format(re.escape(name)), text):
                return name
    if error.endswith("UnixProcessIdUnknown"):
        return next((name for name in ("PIDFDs", "PIDs") if name in names), None)
    for hint, meant in _HINTS:
        if hint.search(text):
            for name in meant:
                if name in names:
                    return name
    return None
