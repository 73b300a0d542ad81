"""Interfaces, and the service that they make up.

An interface is a class: its description is the text that introspection serves, its handlers are the methods marked
with :func:`~moorage.wire.method.method`::

    class Example(Interface):
        def __init__(self) -> None:
            super().__init__(DESCRIPTION)

        @method("Look")
        def look(self, call: Call, params: LookIn) -> LookOut: ...
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from moorage.wire.call import Call
from moorage.wire.errors import InterfaceNotFound, MethodNotFound, MethodNotImplemented
from moorage.wire.method import Method, marked, method
from moorage.wire.tally import Tally
from moorage.wire.types import Empty, Parameters, Reply

DESCRIPTION: Final = Path(__file__).with_name("org.varlink.service.varlink").read_text(encoding="utf-8")
"""The description of org.varlink.service."""

_COMMENT = re.compile(r"#.*")
_INTERFACE = re.compile(r"\s*interface\s+([A-Za-z0-9.-]+)")
_METHOD = re.compile(r"^\s*method\s+([A-Za-z0-9]+)\s*\(", re.MULTILINE)


class Interface:
    """One varlink interface: its description and its handlers.

    Args:
        description: text in varlink's interface definition language, served as it is.

    Attributes:
        name: its name, from the description.
        description: the text.
        described: names of all methods in the description.

    Raises:
        ValueError: the description names no interface.
        TypeError: a handler is for a method that is not described.
    """

    def __init__(self, description: str) -> None:
        # The tests parse the whole grammar (wire.idl); to serve an interface, its names are enough.
        bare = _COMMENT.sub("", description)
        match = _INTERFACE.match(bare)
        if match is None:
            raise ValueError("the description does not begin with an interface")
        self.name: str = match.group(1)
        self.description = description
        self.described = frozenset(_METHOD.findall(bare))
        self._handlers = {mark.name: (attribute, mark) for attribute, mark in marked(type(self))}
        unknown = self._handlers.keys() - self.described
        if unknown:
            raise TypeError(f"{self.name} does not describe {', '.join(sorted(unknown))}")

    def handler(self, name: str) -> Method | None:
        """Return the handler of a method, None if there is none; name: without the interface.

        Raises:
            TypeError: its annotations are not those of a handler.
        """
        found = self._handlers.get(name)
        if found is None:
            return None
        attribute, mark = found
        return Method(f"{self.name}.{name}", getattr(self, attribute), requires_more=mark.requires_more)


class GetInfoReply(Reply, omit_defaults=False):
    """Reply of GetInfo."""

    vendor: str
    product: str
    version: str
    url: str
    interfaces: list[str]


class GetInterfaceDescriptionParameters(Parameters):
    """Parameters of GetInterfaceDescription."""

    interface: str


class GetInterfaceDescriptionReply(Reply):
    """Reply of GetInterfaceDescription."""

    description: str


class ServiceInterface(Interface):
    """org.varlink.service, which every service has.

    Attributes:
        interfaces: all interfaces of the service, this one included, by name; sorted.
    """

    def __init__(
        self, *, vendor: str, product: str, version: str, url: str, interfaces: Iterable[Interface]
    ) -> None:
        super().__init__(DESCRIPTION)
        everything = sorted((self, *interfaces), key=lambda interface: interface.name)
        self.interfaces: Mapping[str, Interface] = {interface.name: interface for interface in everything}
        if len(self.interfaces) != len(everything):
            raise ValueError("two interfaces have the same name")
        self._info = GetInfoReply(
            vendor=vendor, product=product, version=version, url=url, interfaces=list(self.interfaces)
        )

    @method("GetInfo")
    def get_info(self, call: Call, params: Empty) -> GetInfoReply:
        """Return the name of the service and the names of its interfaces."""
        del call, params
        return self._info

    @method("GetInterfaceDescription")
    def get_interface_description(
        self, call: Call, params: GetInterfaceDescriptionParameters
    ) -> GetInterfaceDescriptionReply:
        """Return the description of an interface."""
        del call
        interface = self.interfaces.get(params.interface)
        if interface is None:
            raise InterfaceNotFound(params.interface)
        return GetInterfaceDescriptionReply(description=interface.description)


class Service:
    """A set of interfaces, org.varlink.service among them.

    Args:
        vendor: name of the vendor, for GetInfo as the next three.
        product: name of the program.
        version: its version.
        url: address of its documentation; may be empty.
        interfaces: all interfaces except org.varlink.service.

    Attributes:
        interfaces: by name, sorted.
        tally: counts the calls, and the errors that were replied.

    Raises:
        ValueError: two interfaces have the same name.
    """

    def __init__(
        self, *, vendor: str, product: str, version: str, url: str, interfaces: Iterable[Interface] = ()
    ) -> None:
        own = ServiceInterface(
            vendor=vendor, product=product, version=version, url=url, interfaces=interfaces
        )
        self.interfaces = own.interfaces
        self.tally = Tally()
        # Each is made for its first call: making all takes as long as five modules do at the start of the service.
        self._methods: dict[str, Method] = {}

    def find(self, name: str) -> Method:
        """Return the handler of a method.

        Args:
            name: full name, with the interface.

        Raises:
            InterfaceNotFound: the service has no such interface.
            MethodNotFound: the interface has no such method.
            MethodNotImplemented: it has, but there is no handler.
            TypeError: the annotations of the handler are not those of one.
        """
        found = self._methods.get(name)
        if found is not None:
            return found
        prefix, _, member = name.rpartition(".")
        interface = self.interfaces.get(prefix)
        if interface is None:
            raise InterfaceNotFound(prefix or name)
        if (made := interface.handler(member)) is not None:
            self._methods[name] = made
            return made
        if member in interface.described:
            raise MethodNotImplemented(name)
        raise MethodNotFound(name)
