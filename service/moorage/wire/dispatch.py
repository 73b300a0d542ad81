"""From a call to the handler that answers it.

An interface is a class: its description is the text that introspection serves, its handlers are methods marked with
:func:`method`. What a handler takes and gives are msgspec Structs, read from its annotations::

    class Example(Interface):
        def __init__(self) -> None:
            super().__init__(load_description("org.example.Example"))

        @method("Look")
        def look(self, call: Call, params: LookIn) -> LookOut: ...        # answered at once; must not block

        @method("Move")
        async def move(self, call: Call, params: MoveIn) -> None: ...     # waits: runs in a task of its own

        @method("List")
        def list(self, call: Call, params: Empty) -> Iterator[ListOut]: ...   # replies that are known now

        @method("Watch", requires_more=True)
        async def watch(self, call: Call, params: Empty) -> AsyncIterator[Seen | Last[Seen]]: ...

A handler that has its replies at hand for some parameters only is a plain function that returns either iterator.

A handler raises a :class:`~moorage.wire.errors.VarlinkError` to answer with that error.
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
    Sequence,
)
from pathlib import Path
from typing import Annotated, Any, Final, Generic, Protocol, TypeVar, cast

import msgspec
from msgspec import Meta, Raw, Struct

from moorage.kernel.peer import Peer
from moorage.wire.errors import InterfaceNotFound, InvalidParameter, MethodNotFound, MethodNotImplemented
from moorage.wire.message import CallMessage, decode_parameters, repeated_key

Int = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
"""An ``int`` of varlink: 64 bits, signed. msgspec alone would take any number."""

UInt = Annotated[int, Meta(ge=0, le=2**63 - 1)]
"""An ``int`` of varlink that is not negative."""

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])


class Parameters(Struct, forbid_unknown_fields=True):
    """What a method takes. As in sd-varlink, a field that is not described is refused."""


class Reply(Struct, omit_defaults=True):
    """What a method gives. Fields that are at their default (None, of a nullable one) are left out."""


class Empty(Parameters):
    """What a method takes that takes nothing, and gives that gives nothing."""


class Last(msgspec.Struct, Generic[T], frozen=True):
    """The reply that ends a stream: goes out without ``continues``."""

    reply: T


class WithFds(msgspec.Struct, Generic[T], frozen=True):
    """A reply that file descriptors go with. The connection owns them once this is returned or yielded.

    Attributes:
        reply: the reply; fields of it are indices into the list.
        fds: closed after they were sent, or cannot be.
    """

    reply: T
    fds: Sequence[int]


class Caller(Protocol):
    """The connection that a call came by, as far as a handler may know it."""

    @property
    def peer(self) -> Peer:
        """Who made the connection."""
        ...

    async def wait_gone(self) -> None:
        """Return when the peer has hung up, or the connection has ended for another reason."""
        ...

    def dispose(self, fds: Iterable[int]) -> None:
        """Close file descriptors that the peer has sent, without waiting for what their makers put in the way."""
        ...


class Call:
    """One call, as its handler sees it.

    Attributes:
        method: full name, with the interface.
        more: the caller takes several replies.
        oneway: the caller wants no reply.
        fds_truncated: file descriptors that belong to the call were lost on their way (MSG_CTRUNC): an index without
            one is then not the caller's fault.
    """

    __slots__ = ("_caller", "_fds", "fds_truncated", "method", "more", "oneway")

    def __init__(
        self, message: CallMessage, caller: Caller, fds: list[int], *, fds_truncated: bool = False
    ) -> None:
        self.method = message.method
        self.more = message.more
        self.oneway = message.oneway
        self.fds_truncated = fds_truncated
        self._caller = caller
        self._fds: list[int | None] | list[int] = fds

    @property
    def peer(self) -> Peer:
        """Who made the connection."""
        return self._caller.peer

    def take_fd(self, index: int, field: str) -> int:
        """Return a file descriptor that came with the call; the handler owns it from now on.

        Args:
            index: its place, as the parameters say it.
            field: name of the parameter that says it.

        Raises:
            InvalidParameter: there is none at that place, or it was taken before.
        """
        fd = self._fds[index] if 0 <= index < len(self._fds) else None
        if fd is None:
            raise InvalidParameter(field)
        rest: list[int | None] = list(self._fds)
        rest[index] = None
        self._fds = rest
        return fd

    def give_back(self, fd: int) -> None:
        """Give back a file descriptor that was taken, and is not of the kind that can be closed without waiting."""
        self._caller.dispose((fd,))

    async def wait_gone(self) -> None:
        """Return when the caller has hung up.

        The handler's task is cancelled then as well (but that of a ``oneway`` call): this is for whoever outlives it.
        """
        await self._caller.wait_gone()

    def close(self) -> None:
        """Close the file descriptors that were not taken."""
        if self._fds:
            self._caller.dispose(fd for fd in self._fds if fd is not None)
            self._fds = []


class Kind(enum.Enum):
    """How a handler answers."""

    PLAIN = enum.auto()
    GENERATOR = enum.auto()
    COROUTINE = enum.auto()
    ASYNC_GENERATOR = enum.auto()


class _Mark(msgspec.Struct, frozen=True):
    name: str
    requires_more: bool


_MARK: Final = "__varlink_method__"


def method(name: str, *, requires_more: bool = False) -> Callable[[F], F]:
    """Mark a method of an :class:`Interface` as the handler of a varlink method.

    Args:
        name: without the interface.
        requires_more: a call without ``more`` is answered with ExpectedMore.
    """

    def mark(function: F) -> F:
        setattr(function, _MARK, _Mark(name, requires_more))
        return function

    return mark


class Method:
    """A handler, ready to be called.

    Attributes:
        name: full name, with the interface.
        kind: how it answers.
        requires_more: a call without ``more`` is answered with ExpectedMore.
        parameters_type: what it takes.
        reply_type: what it gives.
        function: called with a :class:`Call` and the parameters.
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
            InvalidParameter: they are not what the method takes.
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
        """Decode parameters whose integers are written in another way, such as ``65.0`` or ``"65"``.

        sd-json takes those too (``json_dispatch_int64()``).
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
    """Replace the text or the float at a path such as ``leader.pid`` by the integer that it stands for, if it does."""
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
    """Return the field that msgspec complains of, as a path: ``name``, ``leader.pid``, ``ifIndices[1]``.

    msgspec tells it in its message only. Where that says nothing, the result is empty.
    """
    text = str(error)
    match = _FIELD.fullmatch(text)
    if match is not None:
        name, parent = match.groups()
        return f"{parent}.{name}" if parent else name
    match = _PATH.fullmatch(text)
    return match.group(1) if match is not None else ""


class Shape(msgspec.Struct, frozen=True):
    """What the annotations of a handler say.

    Attributes:
        kind: how it answers.
        parameters_type: what it takes.
        reply_type: what it gives.
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


def handlers_of(interface: type[Interface]) -> Mapping[str, Shape]:
    """Return what the handlers of an interface look like, by the names of the methods.

    Raises:
        TypeError: annotations that are missing, or are none of a handler.
    """
    return {mark.name: _shape(getattr(interface, attribute)) for attribute, mark in _marked(interface)}


def _marked(interface: type[Interface]) -> Iterator[tuple[str, _Mark]]:
    for attribute in dir(interface):
        mark = getattr(getattr(interface, attribute, None), _MARK, None)
        if isinstance(mark, _Mark):
            yield attribute, mark


_STREAMS = (Iterator, Iterable, Generator)
_ASYNC_STREAMS = (AsyncIterator, AsyncIterable, AsyncGenerator)


def _kind(function: Callable[..., Any], annotation: Any) -> Kind:
    origin = typing.get_origin(annotation)
    if origin is types.UnionType and {typing.get_origin(each) for each in typing.get_args(annotation)} & {
        *_STREAMS
    }:
        return Kind.GENERATOR
    if inspect.isasyncgenfunction(function) or origin in _ASYNC_STREAMS:
        return Kind.ASYNC_GENERATOR
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
    if origin in _STREAMS or origin in _ASYNC_STREAMS or origin is Last or origin is WithFds:
        return _reply_type(arguments[0])
    if origin is typing.Union or origin is types.UnionType:
        found = {_reply_type(argument) for argument in arguments if argument is not types.NoneType}
        if len(found) == 1:
            return found.pop()
    elif isinstance(annotation, type) and issubclass(annotation, Struct):
        return annotation
    raise TypeError(f"a handler gives one Struct, not {annotation!r}")


_COMMENT = re.compile(r"#.*")
_INTERFACE = re.compile(r"\s*interface\s+([A-Za-z0-9.-]+)")
_METHOD = re.compile(r"^\s*method\s+([A-Za-z0-9]+)\s*\(", re.MULTILINE)


class Interface:
    """One varlink interface: its description and its handlers.

    Args:
        description: text in varlink's interface definition language, served as it is.

    Attributes:
        name: as the description says.
        description: the text.
        methods: handlers, by the method's name without the interface.
        described: names of all methods in the description.

    Raises:
        ValueError: the description names no interface.
        TypeError: a handler is for a method that is not described, or its annotations do not fit.
    """

    def __init__(self, description: str) -> None:
        # The grammar is for wire.idl, in the tests; to serve an interface its names are enough.
        bare = _COMMENT.sub("", description)
        match = _INTERFACE.match(bare)
        if match is None:
            raise ValueError("the description does not begin with an interface")
        self.name: str = match.group(1)
        self.description = description
        self.described = frozenset(_METHOD.findall(bare))
        self.methods: Mapping[str, Method] = dict(self._handlers())
        unknown = self.methods.keys() - self.described
        if unknown:
            raise TypeError(f"{self.name} does not describe {', '.join(sorted(unknown))}")

    def _handlers(self) -> Iterator[tuple[str, Method]]:
        for attribute, mark in _marked(type(self)):
            function = getattr(self, attribute)
            yield mark.name, Method(f"{self.name}.{mark.name}", function, requires_more=mark.requires_more)


class GetInfoReply(Reply, omit_defaults=False):
    """Who the service is, and the interfaces it has."""

    vendor: str
    product: str
    version: str
    url: str
    interfaces: list[str]


class GetInterfaceDescriptionParameters(Parameters):
    """The name of an interface."""

    interface: str


class GetInterfaceDescriptionReply(Reply):
    """The text of its description."""

    description: str


class ServiceInterface(Interface):
    """org.varlink.service, which every service has."""

    def __init__(self, service: Service) -> None:
        super().__init__(load_description("org.varlink.service"))
        self._service = service
        self.info: GetInfoReply | None = None

    @method("GetInfo")
    def get_info(self, call: Call, params: Empty) -> GetInfoReply:
        """Return who the service is."""
        del call, params
        assert self.info is not None
        return self.info

    @method("GetInterfaceDescription")
    def get_interface_description(
        self, call: Call, params: GetInterfaceDescriptionParameters
    ) -> GetInterfaceDescriptionReply:
        """Return the description of an interface."""
        del call
        interface = self._service.interfaces.get(params.interface)
        if interface is None:
            raise InterfaceNotFound(params.interface)
        return GetInterfaceDescriptionReply(description=interface.description)


class Service:
    """A set of interfaces, org.varlink.service among them.

    Args:
        vendor: who makes it.
        product: what it is.
        version: its version.
        url: where to read about it.
        interfaces: all but org.varlink.service.

    Attributes:
        interfaces: by name, sorted.
    """

    def __init__(
        self, *, vendor: str, product: str, version: str, url: str, interfaces: Iterable[Interface] = ()
    ) -> None:
        own = ServiceInterface(self)
        everything = sorted((own, *interfaces), key=lambda interface: interface.name)
        self.interfaces: Mapping[str, Interface] = {interface.name: interface for interface in everything}
        if len(self.interfaces) != len(everything):
            raise ValueError("an interface is there twice")
        own.info = GetInfoReply(
            vendor=vendor, product=product, version=version, url=url, interfaces=list(self.interfaces)
        )
        self._methods = {
            handler.name: handler for interface in everything for handler in interface.methods.values()
        }

    def find(self, name: str) -> Method:
        """Return the handler of a method.

        Args:
            name: full name, with the interface.

        Raises:
            InterfaceNotFound: the service has no such interface.
            MethodNotFound: the interface has no such method.
            MethodNotImplemented: it has, but there is no handler.
        """
        found = self._methods.get(name)
        if found is not None:
            return found
        prefix, _, member = name.rpartition(".")
        interface = self.interfaces.get(prefix)
        if interface is None:
            raise InterfaceNotFound(prefix or name)
        if member in interface.described:
            raise MethodNotImplemented(name)
        raise MethodNotFound(name)


_PACKAGED = Path(__file__).parent.parent / "interfaces"
_CHECKOUT = Path(__file__).parent.parent.parent.parent / "interfaces"


def load_description(name: str) -> str:
    """Return the description of an interface from the files shipped with the package (or lying in the checkout).

    Raises:
        FileNotFoundError: there is no such file.
    """
    directory = _PACKAGED if _PACKAGED.is_dir() else _CHECKOUT
    return (directory / f"{name}.varlink").read_text(encoding="utf-8")
