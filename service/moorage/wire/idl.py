"""Interface descriptions as trees (https://varlink.org/Interface-Definition).

Used by tests, which compare the types of the handlers with the text that introspection serves. The scanner is that of
the varlink package; no other module uses it, so that it can be replaced.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from varlink import scanner as _untyped

_scanner: Any = _untyped


@dataclass(frozen=True, slots=True)
class Builtin:
    """A type without parts: bool, int, float, string, object or any."""

    name: str


@dataclass(frozen=True, slots=True)
class Named:
    """A reference to a type that the description names."""

    name: str


@dataclass(frozen=True, slots=True)
class Nullable:
    """A value or null; a field of this type may be left out."""

    element: Type


@dataclass(frozen=True, slots=True)
class Array:
    """Any number of values."""

    element: Type


@dataclass(frozen=True, slots=True)
class Map:
    """A dictionary with strings as keys."""

    element: Type


@dataclass(frozen=True, slots=True)
class StringSet:
    """A set of strings."""


@dataclass(frozen=True, slots=True)
class Fields:
    """A struct, or the parameters of a method, a reply or an error."""

    fields: Mapping[str, Type]


@dataclass(frozen=True, slots=True)
class Values:
    """An enumeration."""

    values: frozenset[str]


Type = Builtin | Named | Nullable | Array | Map | StringSet | Fields | Values


@dataclass(frozen=True, slots=True)
class Description:
    """An interface.

    Attributes:
        name: name of the interface.
        types: types, by name.
        methods: parameters and reply of each method, by name.
        errors: parameters of each error, by name.
    """

    name: str
    types: Mapping[str, Type]
    methods: Mapping[str, tuple[Fields, Fields]]
    errors: Mapping[str, Fields]

    def resolve(self, found: Type) -> Type:
        """Follow a reference to a named type; return any other type unchanged.

        Raises:
            KeyError: there is no type of that name.
        """
        while isinstance(found, Named):
            found = self.types[found.name]
        return found


class _Any:
    """The type ``any`` in the trees of the scanner."""


class _Scanner(_scanner.Scanner):
    # The scanner of the package is older than the type `any`, and reports a single name in brackets as a field without
    # a type; to sd-varlink it is an enumeration with one value.
    def read_type(self, lastmaybe: bool = False) -> object:  # noqa: FBT001, FBT002  # not ours
        base: Any = super()
        return _Any() if self.get("any") else base.read_type(lastmaybe)

    def read_struct(self) -> object:
        base: Any = super()
        scanner: Any = self
        start = scanner.pos
        if scanner.get("(") and (name := scanner.get("identifier")) and scanner.get(")"):
            return _scanner._Enum([name])  # noqa: SLF001  # there is no other way to make one
        scanner.pos = start
        return base.read_struct()


def parse(text: str) -> Description:
    """Parse a description.

    Raises:
        ValueError: the text is not a description.
    """
    # To sd-varlink a carriage return is white space. A space in its place keeps the positions.
    scanner: Any = _Scanner(text.replace("\r", " "))
    types: dict[str, Type] = {}
    methods: dict[str, tuple[Fields, Fields]] = {}
    errors: dict[str, Fields] = {}
    try:
        scanner.expect("interface")
        name: str = scanner.expect("interface-name")
        while not scanner.end():
            member = scanner.read_member()
            if member.name in {*types, *methods, *errors}:
                raise ValueError(f"{member.name} is there twice")
            if isinstance(member, _scanner._Method):  # noqa: SLF001  # there is no other way to tell
                methods[member.name] = (_fields(member.in_type), _fields(member.out_type))
            elif isinstance(member, _scanner._Error):  # noqa: SLF001
                errors[member.name] = _fields(member.type)
            else:
                types[member.name] = _type(member.type)
    except SyntaxError as error:
        line = text.count("\n", 0, scanner.pos) + 1
        raise ValueError(f"line {line}: {error.msg}") from None
    return Description(name, types, methods, errors)


def _fields(found: Any) -> Fields:
    fields = _type(found)
    if not isinstance(fields, Fields):
        raise ValueError(f"fields expected, not {fields}")  # noqa: TRY004  # wrong text, not a wrong type of ours
    return fields


def _type(found: Any) -> Type:  # one for each kind
    names: Mapping[type, str] = {bool: "bool", int: "int", float: "float", str: "string", _Any: "any"}
    if type(found) in names:
        return Builtin(names[type(found)])
    if isinstance(found, set):
        return StringSet()
    kind = type(found).__name__
    match kind:
        case "_Object":
            return Builtin("object")
        case "_CustomType":
            return Named(found.name)
        case "_Maybe":
            return Nullable(_type(found.element_type))
        case "_Array":
            return Array(_type(found.element_type))
        case "_Dict":
            return Map(_type(found.element_type))
        case "_Struct":
            return Fields({name: _type(field) for name, field in found.fields.items()})
        case "_Enum":
            return Values(frozenset(found.fields))
        case _:
            raise ValueError(f"unknown kind of type: {kind}")
