"""Comparison of handlers and errors with the description that is served, in both directions.

A test of each interface calls :func:`check`, so that neither the text nor the Structs can change alone.
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from msgspec import inspect

from moorage.wire.errors import VarlinkError
from moorage.wire.idl import (
    Array,
    Builtin,
    Description,
    Fields,
    Map,
    Nullable,
    StringSet,
    Type,
    Values,
    parse,
)
from moorage.wire.method import handlers_of
from moorage.wire.service import Interface


class Direction(enum.Enum):
    """The direction of a value.

    Attributes:
        TAKEN: from the caller. The type must accept all that the text allows.
        GIVEN: to the caller. The type must not exceed what the text allows.
    """

    TAKEN = enum.auto()
    GIVEN = enum.auto()


def check(
    interface: type[Interface],
    description: str,
    *,
    errors: Iterable[type[VarlinkError]] = (),
    unimplemented: Collection[str] = (),
) -> list[str]:
    """Return the differences between an interface and its description, each as a sentence.

    Args:
        interface: the class with the handlers.
        description: the text.
        errors: classes of the errors; those of other interfaces are ignored.
        unimplemented: names of methods that have no handler, and of errors that have no class, on purpose.

    Raises:
        ValueError: the text is not a description.
    """
    parsed = parse(description)
    handlers = handlers_of(interface)
    differences: list[str] = []
    for name in sorted({*parsed.methods, *handlers}):
        if name not in parsed.methods:
            differences.append(f"{name} is not described")
        elif name not in handlers:
            if name not in unimplemented:
                differences.append(f"{name} has no handler")
        elif name in unimplemented:
            differences.append(f"{name} has a handler")
        else:
            takes, gives = parsed.methods[name]
            walk = _Walk(parsed, Direction.TAKEN)
            differences += walk.compare(
                takes, inspect.type_info(handlers[name].parameters_type), f"{name}()"
            )
            walk = _Walk(parsed, Direction.GIVEN)
            differences += walk.compare(gives, inspect.type_info(handlers[name].reply_type), f"{name}() ->")
    classes = _own_errors(parsed.name, errors)
    for name in sorted({*parsed.errors, *classes}):
        if name not in parsed.errors:
            differences.append(f"error {name} is not described")
        elif name not in classes:
            if name not in unimplemented:
                differences.append(f"error {name} has no class")
        elif name in unimplemented:
            differences.append(f"error {name} has a class")
        else:
            walk = _Walk(parsed, Direction.GIVEN)
            differences += walk.compare(
                parsed.errors[name], inspect.type_info(classes[name]), f"error {name}"
            )
    return differences


def _own_errors(interface: str, errors: Iterable[type[VarlinkError]]) -> Mapping[str, type[VarlinkError]]:
    found: dict[str, type[VarlinkError]] = {}
    for error in errors:
        prefix, _, name = error.error.rpartition(".")
        if prefix == interface:
            found[name] = error
    return found


_SCALARS: Mapping[str, type[inspect.Type]] = {
    "bool": inspect.BoolType,
    "int": inspect.IntType,
    "float": inspect.FloatType,
    "string": inspect.StrType,
    "any": inspect.AnyType,
}


class _Walk:
    """A comparison of two trees."""

    def __init__(self, description: Description, direction: Direction) -> None:
        self._description = description
        self._direction = direction
        self._seen: set[tuple[int, type]] = set()  # a struct may contain itself

    def compare(self, described: Type, ours: inspect.Type, path: str) -> Iterator[str]:
        described = self._description.resolve(described)
        ours, nullable = _without_null(ours)
        if isinstance(described, Nullable):
            if not nullable and self._direction is Direction.TAKEN:
                yield f"{path} does not take null"
            described = self._description.resolve(described.element)
        elif nullable:
            yield f"{path} is not described as nullable"
        match described, ours:
            case Fields(), inspect.StructType() | inspect.DataclassType():
                yield from self._compare_fields(described, ours, path)
            case Values(), inspect.EnumType() | inspect.LiteralType():
                yield from _compare_values(described.values, ours, path)
            case Array(), inspect.ListType() | inspect.VarTupleType():
                yield from self.compare(described.element, ours.item_type, f"{path}[]")
            case Map(), inspect.DictType(key_type=inspect.StrType()):
                yield from self.compare(described.element, ours.value_type, f"{path}[string]")
            case StringSet(), inspect.DictType(value_type=inspect.StructType(fields=())):
                pass
            case Builtin("object"), inspect.DictType(
                key_type=inspect.StrType(), value_type=inspect.AnyType()
            ):
                pass
            case Builtin("object" | "any"), inspect.RawType():
                pass
            case Builtin(name), _ if isinstance(ours, _SCALARS.get(name, ())):
                if (
                    isinstance(ours, inspect.IntType)
                    and self._direction is Direction.TAKEN
                    and not _bounded(ours)
                ):
                    yield f"{path} takes integers of more than 64 bits"
            case _:
                yield f"{path} is described as {described}, not as {type(ours).__name__}"

    def _compare_fields(
        self, described: Fields, ours: inspect.StructType | inspect.DataclassType, path: str
    ) -> Iterator[str]:
        key = (id(described), ours.cls)
        if key in self._seen:
            return
        self._seen.add(key)
        if isinstance(ours, inspect.StructType):
            if self._direction is Direction.TAKEN and not ours.forbid_unknown_fields:
                yield f"{path} takes unknown fields"
            may_omit = bool(ours.cls.__struct_config__.omit_defaults)
        else:
            may_omit = False
        fields = {field.encode_name: field for field in ours.fields}
        for name in sorted({*described.fields, *fields}):
            place = f"{path} {name}"
            if name not in fields:
                yield f"{place} is described only"
                continue
            field = fields[name]
            if name not in described.fields:
                yield f"{place} is not described"
                continue
            yield from self.compare(described.fields[name], field.type, place)
            nullable = isinstance(self._description.resolve(described.fields[name]), Nullable)
            if self._direction is Direction.TAKEN and nullable and field.required:
                yield f"{place} must be there, though it is described as nullable"
            if self._direction is Direction.TAKEN and not nullable and not field.required:
                yield f"{place} may be left out, though it is not described as nullable"
            if self._direction is Direction.GIVEN and not nullable and may_omit and not field.required:
                yield f"{place} is left out at its default, though it is not described as nullable"


def _without_null(found: inspect.Type) -> tuple[inspect.Type, bool]:
    if isinstance(found, inspect.Metadata):
        return _without_null(found.type)
    if not isinstance(found, inspect.UnionType):
        return found, False
    rest = [part for part in found.types if not isinstance(part, inspect.NoneType)]
    nullable = len(rest) < len(found.types)
    if len(rest) == 1:
        return _without_null(rest[0])[0], nullable
    return inspect.UnionType(tuple(rest)), nullable


def _compare_values(
    described: frozenset[str], ours: inspect.EnumType | inspect.LiteralType, path: str
) -> Iterator[str]:
    members: set[Any] = (
        {member.value for member in ours.cls} if isinstance(ours, inspect.EnumType) else set(ours.values)
    )
    for value in sorted(described ^ members, key=str):
        yield f"{path} has {value} in only one of both"


def _bounded(ours: inspect.IntType) -> bool:
    lowest = ours.ge if ours.ge is not None else ours.gt
    highest = ours.le if ours.le is not None else ours.lt
    return lowest is not None and highest is not None and lowest >= -(2**63) and highest <= 2**63
