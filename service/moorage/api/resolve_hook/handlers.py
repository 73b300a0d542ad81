"""Handlers of io.systemd.Resolve.Hook: systemd-resolved asks them for the addresses of machines.

As systemd-machined 262 serves it (``vl_method_resolve_record()``), but for names of ordinary users (`Names`).
"""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator, Iterator

from moorage.api.calls import Authority, permit
from moorage.api.descriptions import load_description
from moorage.api.refusals import Table, translated
from moorage.api.resolve_hook import dns
from moorage.api.resolve_hook.names import Names
from moorage.api.resolve_hook.types import (
    QUESTION_MAX,
    AnswerOut,
    KeyIn,
    KeyOut,
    QueryFilterOut,
    RecordOut,
    ResolveRecordIn,
    ResolveRecordOut,
)
from moorage.machines import metadata
from moorage.machines.machine import Machine
from moorage.machines.networks import Networks
from moorage.wire.call import Call
from moorage.wire.errors import InvalidParameter, System
from moorage.wire.method import method
from moorage.wire.service import Interface
from moorage.wire.types import Empty, Feed, Last

_REFUSALS: Table = {
    metadata.NoPrivateNetworking: lambda _: System.of(errno.ENONET),
    metadata.NotAvailable: lambda _: System.of(errno.EOPNOTSUPP),
    metadata.Unreadable: lambda error: System.of(error.number),
}


class ResolveHook(Interface):
    """The handlers of io.systemd.Resolve.Hook."""

    def __init__(self, names: Names, networks: Networks, authority: Authority) -> None:
        super().__init__(load_description("io.systemd.Resolve.Hook"))
        self._names = names
        self._networks = networks
        self._authority = authority

    @method("QueryFilter")
    def query_filter(self, call: Call, params: Empty) -> Iterator[QueryFilterOut] | Feed[QueryFilterOut]:
        """Return the names of machines; with ``more`` now, and whenever they change."""
        permit(call, self._authority)
        return self._names.follow() if call.more else iter((self._names.all(),))

    @method("ResolveRecord")
    def resolve_record(
        self, call: Call, params: ResolveRecordIn
    ) -> Iterator[ResolveRecordOut] | AsyncIterator[Last[ResolveRecordOut]]:
        """Return the addresses of machines, or that there is nothing of a name below one of theirs."""
        permit(call, self._authority)
        keys = [each.key for each in params.question]
        if not 0 < len(keys) <= QUESTION_MAX or not all(dns.is_name(key.name) for key in keys):
            raise InvalidParameter("question")
        found = [(key, machine) for key in keys if (machine := self._names.find(key.name)) is not None]
        wanted = [(key, machine) for key, machine in found if _is_address(key)]
        if wanted:
            return self._addresses(wanted)
        reply = ResolveRecordOut()
        if found:
            reply = ResolveRecordOut(rcode=dns.SUCCESS, answer=[])
        elif any(self._names.owns_below(above) for key in keys for above in dns.parents(key.name)):
            reply = ResolveRecordOut(rcode=dns.NXDOMAIN)
        return iter((reply,))

    async def _addresses(self, wanted: list[tuple[KeyIn, Machine]]) -> AsyncIterator[Last[ResolveRecordOut]]:
        answers: dict[str, AnswerOut] = {}
        for key, machine in wanted:
            with translated(_REFUSALS):
                addresses = await self._networks.addresses(machine)
            for each in addresses:
                if each.family == dns.TYPES[key.type]:
                    raw = dns.record(machine.name, key.type, each.address)
                    answers.setdefault(raw, AnswerOut(rr=_record(key, machine, each), raw=raw))
        yield Last(ResolveRecordOut(rcode=dns.SUCCESS, answer=list(answers.values())))


def _is_address(key: KeyIn) -> bool:
    return key.class_ in {dns.CLASS_IN, None} and key.type in dns.TYPES


def _record(key: KeyIn, machine: Machine, address: metadata.Address) -> RecordOut:
    return RecordOut(
        key=KeyOut(class_=dns.CLASS_IN, type=key.type, name=machine.name), address=list(address.address)
    )
