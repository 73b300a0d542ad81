"""The client has a place for all that the interface describes, and for nothing else."""

from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from msgspec import inspect

from moorage import client
from moorage.api.descriptions import load_description
from moorage.client import methods, types
from moorage.client.dialogue import ERRORS
from moorage.wire.idl import Array, Builtin, Fields, Map, Nullable, Type, Values, parse

DESCRIBED = parse(load_description("io.moorage.Machine"))

REQUESTS: dict[str, type[methods.Request[Any]]] = {
    name: found
    for name, found in vars(methods).items()
    if isinstance(found, type) and issubclass(found, methods.Request) and not name.startswith("_")
    if found is not methods.Request
}

OUR_ERRORS = {
    name.rpartition(".")[2]: found for name, found in ERRORS.items() if name.startswith("io.moorage.")
}

SCALARS: dict[str, type[inspect.Type]] = {
    "bool": inspect.BoolType,
    "int": inspect.IntType,
    "float": inspect.FloatType,
    "string": inspect.StrType,
}


def parts(found: inspect.Type) -> list[inspect.Type]:
    return list(found.types) if isinstance(found, inspect.UnionType) else [found]


def differences(described: Type, ours: inspect.Type, path: str) -> Iterator[str]:
    """What is not the same."""
    described = DESCRIBED.resolve(described)
    kinds = [part for part in parts(ours) if not isinstance(part, inspect.NoneType)]
    nullable = len(kinds) < len(parts(ours))
    if isinstance(described, Nullable):
        described = DESCRIBED.resolve(described.element)
        # A list that may be missing may be an empty one.
        if not nullable and not isinstance(kinds[0], inspect.ListType):
            yield f"{path} cannot be null"
    elif nullable:
        yield f"{path} is never null"
    match described, kinds:
        case Values(), [inspect.StrType()]:
            pass  # any word is accepted; for those of the interface there is a class, see below
        case Fields(), [inspect.StructType() | inspect.DataclassType() as struct]:
            yield from of_fields(described, struct, path)
        case Array(), [inspect.ListType() as array]:
            yield from differences(described.element, array.item_type, f"{path}[]")
        case Map(), [inspect.DictType() as mapping]:
            yield from differences(described.element, mapping.value_type, f"{path}[string]")
        case Builtin("object"), [inspect.DictType(value_type=inspect.AnyType())]:
            pass
        case Builtin(name), [kind] if isinstance(kind, SCALARS.get(name, ())):
            pass
        case _:
            yield f"{path} is described as {described}, not as {kinds}"


def of_fields(
    described: Fields, ours: inspect.StructType | inspect.DataclassType, path: str
) -> Iterator[str]:
    fields = {field.encode_name: field for field in ours.fields}
    for name in sorted(fields.keys() ^ described.fields.keys()):
        yield f"{path} {name} is in only one of both"
    for name in sorted(fields.keys() & described.fields.keys()):
        found = described.fields[name]
        yield from differences(found, fields[name].type, f"{path} {name}")
        if not isinstance(DESCRIBED.resolve(found), Nullable | Array) and not fields[name].required:
            yield f"{path} {name} is required"
        if isinstance(DESCRIBED.resolve(found), Nullable) and fields[name].required:
            yield f"{path} {name} may be left out"


def test_each_method_has_its_request() -> None:
    assert REQUESTS.keys() == DESCRIBED.methods.keys()


@pytest.mark.parametrize("name", sorted(REQUESTS))
def test_each_parameter_and_each_field_of_a_reply_has_its_place(name: str) -> None:
    request = REQUESTS[name]
    takes, gives = DESCRIBED.methods[name]
    found = [
        *differences(takes, inspect.type_info(request), f"{name}()"),
        *differences(gives, inspect.type_info(methods.reply_type(request)), f"{name}() ->"),
    ]
    assert found == []


def test_each_error_has_its_class() -> None:
    assert OUR_ERRORS.keys() == DESCRIBED.errors.keys()


@pytest.mark.parametrize("name", sorted(OUR_ERRORS))
def test_each_field_of_an_error_has_its_place(name: str) -> None:
    assert not list(
        differences(DESCRIBED.errors[name], inspect.type_info(OUR_ERRORS[name]), f"error {name}")
    )


def test_each_type_has_its_class() -> None:
    for name, described in DESCRIBED.types.items():
        found = getattr(types, name)
        if isinstance(described, Values):
            assert {member.value for member in found} == described.values, name


def test_all_of_it_can_be_had_from_one_place() -> None:
    wanted = {*REQUESTS, *OUR_ERRORS, *DESCRIBED.types}
    assert wanted <= set(client.__all__)
    assert all(getattr(client, name) for name in client.__all__)


def test_a_word_that_is_not_known_yet_is_kept() -> None:
    text = b'{"result":"success","exitedAt":{},"cause":"struckByLightning","accounting":{},"new":[1]}'
    assert msgspec.json.decode(text, type=types.Verdict).cause == "struckByLightning"
