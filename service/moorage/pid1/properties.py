"""Properties of units: from JSON to what the manager wants, and back.

The types are those that the manager itself reports (introspection), not a list that rots with each release. The
table below has only what it does not report: properties that can be set but not read, and those that are set with
another type than they are read with. It was made from src/core/dbus-{unit,cgroup,scope,kill,execute,service}.c of
systemd 262.

JSON, by D-Bus type:

- ``b`` true or false; the integer types a number without a fraction, in the range of the type; ``d`` any number;
  ``s``, ``o``, ``g`` a string without NUL.
- ``t`` also the string "infinity", for the largest value: systemd's "no limit" and "not set". When read, that value
  becomes null, as does a ``d`` that is no number.
- an array is an array, bytes (``ay``) too: one of numbers from 0 to 255; a struct an array of exactly its members;
  a dictionary with strings as keys an object.
- ``h`` cannot be given: JSON has no file descriptors.

Which of the properties can be set at all, introspection does not tell; the manager refuses the others by name.

Pure: no I/O.
"""

import math
from collections.abc import Mapping
from typing import Any, Final

from moorage.dbus.signature import split
from moorage.pid1 import unit_files
from moorage.pid1.errors import InvalidProperty, NoSuchProperty
from moorage.pid1.manager import Json, TypedProperty
from moorage.similar import nearest

PROPERTIES_MAX: Final = 512
"""Properties in one call; a service has about 400 in all."""

ELEMENTS_MAX: Final = 65_536
"""Values in one call, arrays and structs counted too: every device of a large machine, every syscall, many times."""

TEXT_MAX: Final = 1024 * 1024
"""Bytes of strings in one call. A unit file may not be larger either (`LONG_LINE_MAX` of systemd is 1 MiB)."""

INTROSPECTION_MAX: Final = 4 * 1024 * 1024
"""Bytes; that of a service has 0.08 MB in systemd 262."""

_IRREGULAR: Final[Mapping[str, str]] = {
    # set only
    "AddRef": "b", "PIDs": "au", "PIDFDs": "ah", "User": "s", "Group": "s",
    "MemoryMinScale": "u", "MemoryLowScale": "u", "MemoryHighScale": "u", "MemoryMaxScale": "u",
    "MemorySwapMaxScale": "u", "MemoryZSwapMaxScale": "u", "TasksMaxScale": "u",
    "StandardInputFile": "s", "StandardOutputFile": "s", "StandardErrorFile": "s",
    "StandardOutputFileToAppend": "s", "StandardErrorFileToAppend": "s",
    "StandardOutputFileToTruncate": "s", "StandardErrorFileToTruncate": "s",
    "StandardInputFileDescriptor": "h", "StandardOutputFileDescriptor": "h", "StandardErrorFileDescriptor": "h",
    "RootDirectoryFileDescriptor": "h", "ExtraFileDescriptors": "a(hs)",
    # read with the result of the last check, or with more
    "Conditions": "a(sbbs)", "Asserts": "a(sbbs)", "SELinuxContext": "s",
    "TTYRows": "u", "TTYColumns": "u", "RefreshOnReload": "a(bs)",
}  # fmt: skip

_ONLY_ON: Final[Mapping[str, frozenset[str]]] = {
    "PIDs": frozenset({"Scope"}),
    "PIDFDs": frozenset({"Scope"}),
    **dict.fromkeys(
        ("MemoryMinScale", "MemoryLowScale", "MemoryHighScale", "MemoryMaxScale", "MemorySwapMaxScale",
         "MemoryZSwapMaxScale", "TasksMaxScale"),
        frozenset({"Scope", "Service", "Socket", "Slice", "Mount", "Swap"}),
    ),
    **dict.fromkeys(("User", "Group"), frozenset({"Scope", "Service", "Socket", "Mount", "Swap"})),
    **dict.fromkeys((name for name in _IRREGULAR if name.startswith(("Standard", "RootD", "Extra"))),
                    frozenset({"Service"})),
}  # fmt: skip

_COMMANDS: Final[Mapping[str, str]] = {"a(sasbttttuii)": "a(sasb)", "a(sasasttttuii)": "a(sasas)"}
"""Commands are read with the times and the status of their last run (`bus_set_transient_exec_command()`)."""

_RANGES: Final[Mapping[str, tuple[int, int]]] = {
    "y": (0, 2**8 - 1),
    "n": (-(2**15), 2**15 - 1),
    "q": (0, 2**16 - 1),
    "i": (-(2**31), 2**31 - 1),
    "u": (0, 2**32 - 1),
    "x": (-(2**63), 2**63 - 1),
    "t": (0, 2**64 - 1),
}
_UINT64_MAX: Final = 2**64 - 1
_PREFIX: Final = "org.freedesktop.systemd1."


class UnitProperties:
    """What one type of unit has, for one version of the manager."""

    def __init__(self, types: Mapping[str, tuple[str, str]], version: int) -> None:
        """`types` maps the name of each property to its interface and its signature when read."""
        self._types = types
        self._version = version
        interfaces = {interface.removeprefix(_PREFIX) for interface, _ in types.values()}
        self._settable = {
            name: _COMMANDS.get(signature, signature) for name, (_, signature) in types.items()
        }
        for name, signature in _IRREGULAR.items():
            where = _ONLY_ON.get(name)
            if name in types or where is None or where & interfaces:
                self._settable[name] = signature

    @classmethod
    def from_introspection(cls, text: str, version: int) -> "UnitProperties":
        """Read the manager's description of an object.

        Args:
            text: the description.
            version: of the manager, such as 257.

        Raises:
            ValueError: it is none, or too large.
        """
        # Not with the others: who does not ask for a property starts without it.
        import xml.etree.ElementTree as ET

        # No DOCTYPE but the one that every such text has, and expat does not fetch that; entities cannot be
        # declared without an internal subset.
        if len(text) > INTROSPECTION_MAX or "<!ENTITY" in text:
            raise ValueError("introspection data is too large, or not what it should be")
        types: dict[str, tuple[str, str]] = {}
        try:
            root = ET.fromstring(text)  # noqa: S314 - see above, and it comes from PID 1
        except ET.ParseError as exc:
            raise ValueError(f"introspection data is malformed: {exc}") from exc
        for interface in root.iter("interface"):
            interface_name = interface.get("name", "")
            if not interface_name.startswith(_PREFIX):
                continue
            for each in interface.iter("property"):
                name, signature = each.get("name", ""), each.get("type", "")
                split(signature)
                types[name] = (interface_name, signature)
        return cls(types, version)

    @property
    def settable(self) -> Mapping[str, str]:
        """Signature to set each property with, read-only ones included."""
        return self._settable

    def interface(self, name: str) -> str:
        """The interface that a property is read from.

        Raises:
            NoSuchProperty: it cannot be read.
        """
        try:
            return self._types[name][0]
        except KeyError:
            raise NoSuchProperty(name) from None

    def convert(self, properties: Mapping[str, Json]) -> tuple[TypedProperty, ...]:
        """See `moorage.pid1.manager.PropertyTypes`."""
        if len(properties) > PROPERTIES_MAX:
            raise InvalidProperty(next(iter(properties)), f"more than {PROPERTIES_MAX} properties at once")
        unit_files.check_together(properties)
        budget = _Budget()
        converted: list[TypedProperty] = []
        for name, value in properties.items():
            signature = self._settable.get(name)
            if signature is None:
                raise NoSuchProperty(name, nearest(name, self._settable))
            rules = unit_files.rules(name, signature)
            asked = _from_json(signature, value, name, "", budget, rules)
            converted.append(
                TypedProperty(name, signature, unit_files.settle(name, signature, asked, self._version))
            )
        return tuple(converted)


class _Budget:
    """What one call may still contain."""

    def __init__(self) -> None:
        self.elements = ELEMENTS_MAX
        self.text = TEXT_MAX

    def take(self, name: str, elements: int, text: int = 0) -> None:
        self.elements -= elements
        self.text -= text
        if self.elements < 0 or self.text < 0:
            raise InvalidProperty(name, f"more than {ELEMENTS_MAX} values or {TEXT_MAX} bytes in one call")


def check_text(name: str, text: str) -> None:
    """Check the string of a property that is not from JSON.

    Raises:
        InvalidProperty: no unit file can hold it.
    """
    _check_text(name, "", text, unit_files.rules(name, "s"))


def _check_text(name: str, where: str, text: str, rules: unit_files.Rules) -> None:
    assert isinstance(rules, unit_files.Rule)
    if (what := rules.broken_by(text)) is not None:
        raise InvalidProperty(name, f"{where or 'it'} has {what}, which no unit file can hold")


def _from_json(
    signature: str, value: Json, name: str, where: str, budget: _Budget, rules: unit_files.Rules
) -> object:
    """Convert one complete type; `where` locates the value within the property, for the message."""

    def wrong(expected: str) -> InvalidProperty:
        return InvalidProperty(name, f"{where} is not {expected}" if where else f"not {expected}")

    budget.take(name, 1)
    if signature in _RANGES:
        low, high = _RANGES[signature]
        if signature == "t" and value == "infinity":
            return _UINT64_MAX
        if isinstance(value, bool) or not isinstance(value, int):
            raise wrong('an integer or "infinity"' if signature == "t" else "an integer")
        if not low <= value <= high:
            raise wrong(f"in the range from {low} to {high}")
        return value
    if signature == "b":
        if not isinstance(value, bool):
            raise wrong("a boolean")
        return value
    if signature == "d":
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise wrong("a number")
        try:
            return float(value)
        except OverflowError:
            raise wrong("a number that fits into 64 bits") from None
    if signature in ("s", "o", "g"):
        return _text(value, name, where, budget, rules)
    if signature == "ay":
        if not isinstance(value, list):
            raise wrong("an array of bytes")
        return bytes([_byte(item, name, f"{where}[{n}]", budget) for n, item in enumerate(value)])
    if signature.startswith("a{"):
        if not isinstance(value, dict) or signature[2] != "s":
            raise wrong("an object")
        return {
            _key(key, name, budget): _from_json(signature[3:-1], item, name, f"{where}.{key}", budget, rules)
            for key, item in value.items()
        }
    if signature.startswith("a"):
        if not isinstance(value, list):
            raise wrong("an array")
        return [
            _from_json(signature[1:], item, name, f"{where}[{n}]", budget, rules)
            for n, item in enumerate(value)
        ]
    if signature.startswith("("):
        members = split(signature[1:-1])
        if not isinstance(value, list) or len(value) != len(members):
            raise wrong(f"an array of {len(members)}")
        return tuple(
            _from_json(
                member, item, name, f"{where}[{n}]", budget, rules[n] if type(rules) is tuple else rules
            )
            for n, (member, item) in enumerate(zip(members, value, strict=True))
        )
    raise InvalidProperty(name, "it takes what JSON cannot express")


def _text(value: Json, name: str, where: str, budget: _Budget, rules: unit_files.Rules) -> str:
    if not isinstance(value, str):
        raise InvalidProperty(name, f"{where} is not a string" if where else "not a string")
    try:
        size = len(value.encode())
    except UnicodeEncodeError:
        raise InvalidProperty(
            name, f"{where} is not valid Unicode" if where else "not valid Unicode"
        ) from None
    _check_text(name, where, value, rules)
    budget.take(name, 0, size)
    return value


def _byte(value: Json, name: str, where: str, budget: _Budget) -> int:
    converted = _from_json("y", value, name, where, budget, unit_files.QUOTED)
    assert isinstance(converted, int)
    return converted


def _key(value: str, name: str, budget: _Budget) -> str:
    return str(_from_json("s", value, name, "", budget, unit_files.LINE))


def to_json(signature: str, value: Any, infinity: Json = None) -> Json:
    """Convert a value of one complete type as it was read.

    Args:
        signature: its type.
        value: the value.
        infinity: stands for the largest number of 64 bits, which means that there is no limit.
    """
    if signature == "t":
        return infinity if value == _UINT64_MAX else value
    if signature == "d":
        return value if math.isfinite(value) else None
    if signature == "v":
        inner, content = value
        return to_json(inner, content, infinity)
    if signature == "ay":
        return list(value)
    if signature.startswith("a{"):
        return {str(key): to_json(signature[3:-1], item, infinity) for key, item in value.items()}
    if signature.startswith("a"):
        return [to_json(signature[1:], item, infinity) for item in value]
    if signature.startswith("("):
        members = split(signature[1:-1])
        return [to_json(member, item, infinity) for member, item in zip(members, value, strict=True)]
    return value
