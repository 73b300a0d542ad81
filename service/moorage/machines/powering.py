"""Asks guests to power off, or to boot again.

A machine with a control address is asked there, by ``io.systemd.MachineInstance``, as machinectl does it for those of
systemd-vmspawn. A unit of its own makes that call with the rights of the user who registered the machine
(`moorage.probes.control`): no peer keeps this service waiting, and no user has root connect to what is not the user's
own. A container without a control address gets the signals that machinectl sends to systemd and to sysvinit.
"""

from __future__ import annotations

import os
import signal
from enum import Enum
from typing import Final

import msgspec
import trio

from moorage.machines.control import Control
from moorage.machines.errors import GuestUnreachable
from moorage.machines.machine import Machine
from moorage.machines.metadata import account
from moorage.machines.model import KillWhom, MachineClass, Record
from moorage.machines.texts import is_path
from moorage.pid1.errors import ManagerError, ManagerTimeout
from moorage.pid1.manager import Manager
from moorage.pid1.oneshot import ProbeFailed, probe
from moorage.probes import control as program
from moorage.probes.capabilities import CAP_SETGID, CAP_SETUID

REPLY_SECONDS: Final = 4.0
"""For how long a VMM may take to reply that it has asked its guest: it passes a word on. Less than the unit that waits
for it may take (`moorage.pid1.oneshot.PROBE_SECONDS`)."""

POWER_SECONDS: Final = 25.0
"""Deadline of PowerOff and Reboot, that of a call on D-Bus: there may be no place for the unit for a while."""

INTERFACE: Final = "io.systemd.MachineInstance"


class Power(Enum):
    """A request to a guest: the method at its control address, and the signal for a container's leader.

    The signals are those of machinectl: systemd(1) and sysvinit take SIGINT for Ctrl-Alt-Del.
    """

    off = ("PowerOff", signal.SIGRTMIN + 4)
    reboot = ("Reboot", signal.SIGINT)

    def __init__(self, method: str, number: int) -> None:
        self.method = method
        self.number = number


class _Answer(msgspec.Struct, forbid_unknown_fields=True):
    done: bool = False
    error: str | None = None
    refused: str | None = None
    slow: bool = False


class Powering:
    """Asks guests."""

    def __init__(self, control: Control, manager: Manager) -> None:
        self._control = control
        self._manager = manager

    async def ask(self, machine: Machine, power: Power, *, timeout: float = POWER_SECONDS) -> None:
        """Ask a guest to power off or to boot again; return when it was asked. A frozen one is thawed first.

        Args:
            machine: one of the registry's.
            power: for what.
            timeout: in seconds.

        Raises:
            GuestUnreachable: there is nothing to ask it by, or what is there refuses.
            ManagerTimeout: whoever listens at its control address does not reply.
            ProcessGone: the leader has exited, or was never told.
            ManagerError: as the manager says.
        """
        path = control_path(machine.record, power)
        try:
            with trio.fail_after(timeout):
                if path is None:
                    await self._control.kill(machine, KillWhom.leader, power.number)
                else:
                    await self._control.thaw(machine)
                    await self._call(machine.record, power, path)
        except trio.TooSlowError:
            raise ManagerTimeout(power.method) from None

    async def _call(self, record: Record, power: Power, path: str) -> None:
        question = os.memfd_create("question", os.MFD_CLOEXEC)
        try:
            # The service manager of a user has no rights but that user's, whoever registers there.
            uid = os.geteuid() or record.registrant
            asked = {
                "path": path, "method": f"{INTERFACE}.{power.method}", "uid": uid,
                "seconds": REPLY_SECONDS,
            }  # fmt: skip
            os.pwrite(question, msgspec.json.encode(asked), 0)
            data = await probe(
                self._manager,
                program.__file__,
                question,
                f"{power.method} of machine {record.name}",
                account=account(record),
                capabilities=CAP_SETUID | CAP_SETGID,
                families=("AF_UNIX",),
            )
            answer = msgspec.json.decode(data, type=_Answer)
        except (ProbeFailed, msgspec.DecodeError) as error:
            if isinstance(error.__cause__, ManagerError):
                raise error.__cause__ from None
            raise GuestUnreachable(power.method, f"its control socket was not reached: {error}") from None
        finally:
            os.close(question)
        if answer.slow:
            raise ManagerTimeout(power.method)
        if answer.refused is not None:
            raise GuestUnreachable(power.method, f"its control socket {path}: {answer.refused}")
        if answer.error is not None:
            raise GuestUnreachable(power.method, f"its control socket replied with {answer.error}")


def control_path(record: Record, power: Power) -> str | None:
    """Return the path of the control socket of a machine; None where its leader gets a signal.

    Raises:
        GuestUnreachable: there is neither.
    """
    address = record.identity.control_address
    if address is None:
        if record.class_ is MachineClass.container:
            return None
        raise GuestUnreachable(power.method, "the machine has no control address")
    path = address.removeprefix("unix:")
    if not is_path(path):
        raise GuestUnreachable(power.method, "its control address is not the path of a socket")
    return path
