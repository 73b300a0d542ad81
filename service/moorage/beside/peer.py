"""machined, as it is called over its varlink.

Each call has a deadline, and each reply is checked: machined is root's, but it may hang, and what is behind its socket
may be something else. 257 and later are alike in what is called here: Register takes ``leaderProcessId`` with the
inode number of a pidfd. What the older ones do not know of the rest, they refuse by name: it is left out then.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Generator
from typing import Any

import trio

from moorage.beside.listed import Listed, listed
from moorage.machines.model import Record
from moorage.wire.client import Client
from moorage.wire.connection import NotSent
from moorage.wire.errors import (
    Disconnected,
    InvalidParameter,
    ProtocolError,
    RemoteError,
    TimedOut,
    VarlinkError,
)

CALL_SECONDS = 5.0
"""Deadline of a call, s: machined asks the service manager and the bus meanwhile, and takes a few ms."""

LIST_SECONDS = 30.0
"""The same of the list of all machines, s: 400 of them take machined 0.1 s."""

LISTED_MAX = 16_384
"""Replies that are read of one list: as many machines as there may be here. More of them is nonsense."""

_INTERFACE = "io.systemd.Machine"
_NO_SUCH_MACHINE = f"{_INTERFACE}.NoSuchMachine"


class MachinedUnavailable(Exception):
    """machined cannot be reached, does not answer in time, or not in its protocol."""


class MachinedAway(MachinedUnavailable):
    """Nobody listens."""


class MachinedRefused(Exception):
    """machined answers with an error."""


class Peer:
    """A connection to machined, made when it is needed.

    Args:
        address: path of its socket.
        bus: path of the socket of the system bus, without which machined does not run.
    """

    def __init__(self, address: str, bus: str) -> None:
        self._address = address
        self._bus = bus
        self._client: Client | None = None
        self._takes_address = True

    @property
    def is_there(self) -> bool:
        """Whether machined listens, or did when it last ran, and can run."""
        return os.path.lexists(self._address) and os.path.lexists(self._bus)

    def close(self) -> None:
        """End the connection; the next call makes another one."""
        client, self._client = self._client, None
        if client is not None:
            client.close()

    async def register(self, record: Record, control_address: str | None) -> None:
        """Register a machine that has its unit.

        Args:
            record: its record.
            control_address: where it can be controlled.

        Raises:
            MachinedUnavailable, MachinedRefused: see there.
        """
        leader, identity = record.leader, record.identity
        assert leader is not None
        parameters = {
            "name": record.name,
            "class": record.class_.value,
            "leaderProcessId": {"pid": leader.pid, "pidfdId": leader.pidfd_id, "bootId": leader.boot_id},
            "allocateUnit": False,
            "id": identity.id,
            "service": identity.service,
            "rootDirectory": identity.root_directory,
            "ifIndices": list(identity.if_indices) or None,
            "vSockCid": identity.vsock_cid,
            "sshAddress": identity.ssh_address,
            "sshPrivateKeyPath": identity.ssh_private_key_path,
            "controlAddress": control_address if self._takes_address else None,
        }
        given = {key: value for key, value in parameters.items() if value is not None}
        try:
            await self._call("Register", given)
        except _UnknownAddress:  # it may be another machined the next time that it is connected to
            self._takes_address = False
            del given["controlAddress"]
            await self._call("Register", given)

    async def unregister(self, name: str) -> None:
        """Have machined forget a machine; nothing happens if it has none of that name.

        Raises:
            MachinedUnavailable, MachinedRefused: see there.
        """
        with contextlib.suppress(_NoSuchMachine):
            await self._call("Unregister", {"name": name})

    async def look(self, name: str) -> Listed | None:
        """Return the machine of a name that machined has, if any that makes sense.

        Raises:
            MachinedUnavailable, MachinedRefused: see there.
        """
        try:
            found = listed(await self._call("List", {"name": name}))
        except _NoSuchMachine:
            return None
        return found if found is not None and found.name == name else None

    async def look_at_all(self) -> dict[str, Listed]:
        """Return the machines that machined has, and that make sense, by their names.

        Raises:
            MachinedUnavailable: see there; also if it refuses to tell.
        """
        found: dict[str, Listed] = {}
        try:
            with trio.fail_after(LIST_SECONDS):
                await self._look_at_all(found)
        except trio.TooSlowError:
            self.close()
            raise MachinedUnavailable("it does not list its machines in time") from None
        except _NoSuchMachine:
            return {}
        except MachinedRefused as error:
            raise MachinedUnavailable(str(error)) from None
        return found

    async def _look_at_all(self, found: dict[str, Listed]) -> None:
        with self._translated():
            client = await self._connected()
            count = 0
            async with client.call_more(f"{_INTERFACE}.List", {}, timeout=CALL_SECONDS) as replies:
                async for reply in replies:
                    count += 1
                    if count > LISTED_MAX:
                        raise MachinedUnavailable(f"it lists more than {LISTED_MAX} machines")
                    if (machine := listed(reply)) is not None:
                        found[machine.name] = machine

    async def _connected(self) -> Client:
        if self._client is None or self._client.closed:
            self._client = await Client.connect(self._address, timeout=CALL_SECONDS)
            self._takes_address = True
        return self._client

    async def _call(self, method: str, parameters: dict[str, Any]) -> dict[str, Any]:
        with self._translated():
            client = await self._connected()
            return await client.call(f"{_INTERFACE}.{method}", parameters, timeout=CALL_SECONDS)

    @contextlib.contextmanager
    def _translated(self) -> Generator[None]:
        try:
            yield
        except RemoteError as error:
            if error.error == _NO_SUCH_MACHINE:
                raise _NoSuchMachine(str(error)) from None
            raise MachinedRefused(str(error)) from None
        except (ConnectionRefusedError, FileNotFoundError) as error:
            self.close()
            raise MachinedAway(str(error)) from None
        except (OSError, Disconnected, TimedOut, ProtocolError, NotSent) as error:
            self.close()
            raise MachinedUnavailable(str(error) or type(error).__name__) from None
        except InvalidParameter as error:
            refused = _UnknownAddress if error.parameter == "controlAddress" else MachinedRefused
            raise refused(str(error)) from None
        except VarlinkError as error:  # those of every service
            raise MachinedRefused(str(error)) from None


class _NoSuchMachine(MachinedRefused):
    pass


class _UnknownAddress(MachinedRefused):
    """It does not know the parameter ``controlAddress`` of Register (257), or does not like this one."""
