"""Handlers: methods of an :class:`~moorage.wire.service.Interface` that are marked with :func:`method`.

The annotations of a handler give the Structs of its parameters and its replies, and how it replies::

    @method("Look")
    def look(self, call: Call, params: LookIn) -> LookOut: ...        # replies at once; must not block

    @method("Move")
    async def move(self, call: Call, params: MoveIn) -> None: ...     # waits: runs in a task of its own

    @method("List")
    def list(self, call: Call, params: Empty) -> Iterator[ListOut]: ...   # several replies that need no waiting

    @method("Watch", requires_more=True)
    async def watch(self, call: Call, params: Empty) -> AsyncIterator[Seen | Last[Seen]]: ...

    @method("Follow", requires_more=True)
    def follow(self, call: Call, params: Empty) -> Feed[Seen]: ...   # whenever there is something, without a task

A handler that waits for some parameters only is a plain function that returns either kind of iterator, or an iterator
or a feed. To reply with an error, it raises a :class:`~moorage.wire.errors.VarlinkError`.
"""

from __future__ import annotations

import enum
import inspect
import re
import types
import typing
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Callable,
    Generator,
    Iterable,
    Iterator,
    Mapping,
)
from typing import Any, Final, TypeVar, cast

import msgspec
from msgspec import Raw, Struct

from moorage.wire.call import Call
from moorage.wire.errors import InvalidParameter
from moorage.wire.message import decode_parameters, repeated_key
from moorage.wire.types import Empty, Feed, Last, Prepared, WithFds

F = TypeVar("F", bound=Callable[..., Any])


class Kind(enum.Enum):
    """How a handler replies."""

    PLAIN = enum.auto()
    GENERATOR = enum.auto()
    COROUTINE = enum.auto()
    ASYNC_GENERATOR = enum.auto()
    FEED = enum.auto()


class Mark(Struct, frozen=True):
    """The note that :func:`method` leaves on a handler."""

    name: str
    requires_more: bool


_MARK: Final = "__varlink_method__"


def method(name: str, *, requires_more: bool = False) -> Callable[[F], F]:
    """Mark a function as the handler of a varlink method.

    Args:
        name: without the interface.
        requires_more: a call without ``more`` is answered with ExpectedMore.
    """

    def mark(function: F) -> F:
        setattr(function, _MARK, Mark(name, requires_more))
        return function

    return mark


class Method:
    """A handler, ready to be called.

    Attributes:
        name: full name, with the interface.
        kind: how it replies.
        requires_more: a call without ``more`` is answered with ExpectedMore.
        parameters_type: Struct of the parameters.
        reply_type: Struct of each reply.
        function: called with a :class:`~moorage.wire.call.Call` and the parameters.
    """

    __slots__ = ("_decoder", "function", "kind", "name", "parameters_type", "reply_type", "requires_more")

    def __init__(self, name: str, function: Callable[[Call, Any], Any], *, requires_more: bool) -> None:
        self.name = name
        self.function = function
        self.requires_more = requires_more
        shape = _shape(function)
        self.kind = shape.kind
        self.parameters_type = shape.parameters_type
        self.reply_type = shape.reply_type
        self._decoder = msgspec.json.Decoder(self.parameters_type)

    def decode(self, parameters: Raw) -> Struct:
        """Return the parameters of a call.

        Raises:
            InvalidParameter: they do not fit the method.
            ProtocolError: they are not JSON.
        """
        try:
            decoded = decode_parameters(parameters, self._decoder)
        except msgspec.ValidationError as error:
            decoded = self._decode_leniently(parameters, error)
        if (key := repeated_key(parameters)) is not None:
            raise InvalidParameter(key)
        return decoded

    def _decode_leniently(self, parameters: Raw, error: msgspec.ValidationError) -> Struct:
        """Decode parameters with integers in other notations, such as ``65.0`` or ``"65"``.

        sd-json accepts those too (``json_dispatch_int64()``).
        """
        values: dict[str, Any] | None = None
        for _ in range(len(self.parameters_type.__struct_fields__)):
            if not _EXPECTED_INT.match(str(error)):
                break
            try:
                values = values or decode_parameters(parameters, _ANYTHING)
                if not _make_integer(values, invalid_field(error)):
                    break
                return msgspec.convert(values, self.parameters_type)
            except msgspec.ValidationError as other:
                error = other
        raise InvalidParameter(invalid_field(error)) from None


_ANYTHING = msgspec.json.Decoder(dict[str, Any])
_EXPECTED_INT = re.compile(r"Expected `int(?: \| null)?`, got `(?:str|float)`")
_DECIMAL = re.compile(r"[+-]?[0-9]{1,20}")


def _make_integer(values: dict[str, Any], path: str) -> bool:
    """Replace the string or the float at a path such as ``leader.pid`` by its integer; return whether it has one."""
    *above, name = path.split(".")
    for each in above:
        below = values.get(each)
        if not isinstance(below, dict):
            return False
        values = cast("dict[str, Any]", below)
    found = values.get(name)
    if (isinstance(found, str) and _DECIMAL.fullmatch(found)) or (
        isinstance(found, float) and found.is_integer()
    ):
        values[name] = int(found)
        return True
    return False


_FIELD = re.compile(
    r"Object (?:contains unknown|missing required) field `(.*?)`(?: - at `\$\.?([\w.\[\]]*)`)?", re.DOTALL
)
_PATH = re.compile(r".* - at `(?:key in )?\$\.?(.*)`", re.DOTALL)


def invalid_field(error: msgspec.ValidationError) -> str:
    """Return the path of the field that is invalid: ``name``, ``leader.pid``, ``ifIndices[1]``.

    msgspec has it in the message only. If the message names no field, the result is empty.
    """
    text = str(error)
    match = _FIELD.fullmatch(text)
    if match is not None:
        name, parent = match.groups()
        return f"{parent}.{name}" if parent else name
    match = _PATH.fullmatch(text)
    return match.group(1) if match is not None else ""


class Shape(Struct, frozen=True):
    """The annotations of a handler.

    Attributes:
        kind: how it replies.
        parameters_type: Struct of the parameters.
        reply_type: Struct of each reply.
    """

    kind: Kind
    parameters_type: type[Struct]
    reply_type: type[Struct]


def _shape(function: Callable[..., Any]) -> Shape:
    hints = typing.get_type_hints(function, include_extras=True)
    arguments = [hints.get(name) for name in inspect.signature(function).parameters if name != "self"]
    parameters = arguments[1] if len(arguments) == 2 else None
    if not (isinstance(parameters, type) and issubclass(parameters, Struct)):
        raise TypeError(f"{function.__qualname__} does not take a call and a Struct of parameters")
    return Shape(_kind(function, hints["return"]), parameters, _reply_type(hints["return"]))


def handlers_of(interface: type) -> Mapping[str, Shape]:
    """Return the annotations of the handlers of an interface, by the names of the varlink methods.

    Raises:
        TypeError: annotations are missing, or are not those of a handler.
    """
    return {mark.name: _shape(getattr(interface, attribute)) for attribute, mark in marked(interface)}


def marked(interface: type) -> Iterator[tuple[str, Mark]]:
    """Return the handlers of an interface: the names of the functions, and their marks."""
    for attribute in dir(interface):
        mark = getattr(getattr(interface, attribute, None), _MARK, None)
        if isinstance(mark, Mark):
            yield attribute, mark


_STREAMS = (Iterator, Iterable, Generator)
_ASYNC_STREAMS = (AsyncIterator, AsyncIterable, AsyncGenerator)


def _kind(function: Callable[..., Any], annotation: Any) -> Kind:
    origin = typing.get_origin(annotation)
    origins = {typing.get_origin(each) for each in typing.get_args(annotation)}
    if origin in {types.UnionType, typing.Union} and origins & {*_STREAMS}:
        return Kind.GENERATOR
    if inspect.isasyncgenfunction(function) or origin in _ASYNC_STREAMS:
        return Kind.ASYNC_GENERATOR
    if origin is Feed:
        return Kind.FEED
    if inspect.iscoroutinefunction(function):
        return Kind.COROUTINE
    if inspect.isgeneratorfunction(function) or origin in _STREAMS:
        return Kind.GENERATOR
    return Kind.PLAIN


def _reply_type(annotation: Any) -> type[Struct]:
    origin = typing.get_origin(annotation)
    arguments = typing.get_args(annotation)
    if annotation is None or annotation is types.NoneType:
        return Empty
    if origin in _STREAMS or origin in _ASYNC_STREAMS or origin in {Last, Prepared, WithFds, Feed}:
        return _reply_type(arguments[0])
    if origin is typing.Union or origin is types.UnionType:
        found = {_reply_type(argument) for argument in arguments if argument is not types.NoneType}
        if len(found) == 1:
            return found.pop()
    elif isinstance(annotation, type) and issubclass(annotation, Struct):
        return annotation
    raise TypeError(f"a handler replies with one Struct, not {annotation!r}")
