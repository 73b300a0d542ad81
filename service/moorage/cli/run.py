"""Run a command as the payload of a machine, from its registration to its end."""

from __future__ import annotations

import contextlib
import errno
import math
import os
import signal
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import dataclass
from typing import Any, Final

import click
import trio

from moorage.cli import authentication, views
from moorage.cli.address import Address
from moorage.cli.endings import surprise
from moorage.cli.failures import Exit, Failure, explain
from moorage.cli.helper_files import Helper, as_sent
from moorage.cli.processes import naming
from moorage.cli.service import Reply
from moorage.cli.terminal import Terminal
from moorage.client.dialogue import Dialogue, call_at, connect
from moorage.client.lease import Lease, Notice
from moorage.client.lifecycle import AFTERMATH_SECONDS, LOOK_SECONDS
from moorage.client.methods import AwaitStop, Describe, Kill, Request, Stop, StopRequested
from moorage.client.types import Machine
from moorage.errors import NoSuchMachine
from moorage.launch import HOLD_SECONDS, BadCommand, HolderGone, StartFailed, TooSlow
from moorage.launch.trio import Payload, hold
from moorage.quantities import printable
from moorage.steps.trio import take
from moorage.wire.errors import ProtocolError, VarlinkError

SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Requests to end: from Ctrl-C, a service manager, or a terminal that was closed."""

SIGNALS_WITH_TERMINAL: Final = (*SIGNALS, signal.SIGQUIT)
"""With --pty moorctl must survive SIGQUIT as well, to restore the terminal."""

PASSED_ON: Final = (signal.SIGUSR1, signal.SIGUSR2, *range(signal.SIGRTMIN, signal.SIGRTMAX + 1))
"""Signals that mean something only to programs, such as SIGRTMIN+4 to systemd(1) in a container."""

_OPTIONS: Final = {
    "argv": "COMMAND",
    "cwd": "--working-directory",
    "env": "--setenv",
    "fds": "--pass-fd",
    "subgroup": "--subgroup",
    "uid": "--uid",
}
"""What a person types for the arguments of :func:`~moorage.launch.trio.hold` and of ``run()`` of its payload."""


@dataclass(frozen=True, slots=True)
class Order:
    """A command to run, and the machine to run it as.

    Attributes:
        registration: parameters of Register; those that are None are not sent.
        helpers: of the machine.
        register_seconds: how long to wait for the reply of Register.
        stop_seconds: how long to wait for the reply of Stop.
        directory: runtime directory that the command lines of the helpers may contain; None if no file has helpers.
        identity: arguments of :func:`moorage.launch.trio.hold`: user and groups.
        argv: program and arguments.
        settings: further arguments of :meth:`moorage.launch.trio.Payload.run`.
        on_stop: command line that is run when somebody stops the machine, before that is told; empty for none.
        grace_usec: how long a stop waits for it; None for the default.
        terminal: give the program a terminal of its own.
        as_json: print the reply of the service to stderr; standard output belongs to the program.
        quiet: print only what went wrong.
    """

    registration: Mapping[str, Any]
    helpers: Sequence[Helper]
    register_seconds: float
    stop_seconds: float
    directory: str | None
    identity: Mapping[str, Any]
    argv: Sequence[str]
    settings: Mapping[str, Any]
    on_stop: Sequence[str] = ()
    grace_usec: int | None = None
    terminal: bool = False
    as_json: bool = False
    quiet: bool = False


def run(address: Address, order: Order) -> int:
    """Run a command as the payload of a machine, and return its exit status: 128 + N where signal N ended it.

    Raises:
        Failure: the command was not run.
        KeyboardInterrupt: Ctrl-C, before the command was run.
    """
    if order.settings.get("subgroup") is not None and not _asks_for_delegation(order.registration):
        raise Failure(Exit.NOT_RUN, _DELEGATED)
    return trio.run(_run, address, order)


_DELEGATED: Final = "--subgroup needs a delegated machine: use --class container or --property Delegate=yes."


def _asks_for_delegation(registration: Mapping[str, Any]) -> bool:
    """Whether the machine will be delegated: by its class, unless the properties say otherwise."""
    properties: Mapping[str, Any] = registration.get("properties") or {}
    if "DelegateControllers" in properties:
        return True
    return bool(properties.get("Delegate", registration.get("class") == "container"))


async def _run(address: Address, order: Order) -> int:
    seconds = HOLD_SECONDS + math.ceil(order.register_seconds)
    with _terminal(order) as terminal:
        try:
            payload = await hold(seconds=seconds, **order.identity)
        except StartFailed as error:
            raise _not_started(error, order.argv[0]) from None
        except (OSError, HolderGone, TooSlow) as error:
            raise Failure(Exit.NOT_RUN, f"Failed to start a process: {error}.") from None
        async with payload:
            try:
                dialogue = await take(connect(address.path))
            except Exception as error:  # noqa: BLE001 - explain() raises again what it does not expect
                raise _not_run(error, address) from None
            with contextlib.closing(dialogue):
                reply = await _registered(dialogue, address, order, payload)
                if order.registration["dryRun"]:
                    (views.show_json if order.as_json else views.show_registered)(reply)
                    return Exit.OK
                if order.as_json:
                    views.show_json(reply, err=True)
                machine = views.machine_registered(reply)
                return await _executed(address, order, payload, machine, terminal, dialogue)


def _terminal(order: Order) -> AbstractContextManager[Terminal | None]:
    if not order.terminal:
        return contextlib.nullcontext()
    try:
        return Terminal(order.identity.get("uid"))
    except OSError as error:
        raise Failure(Exit.NOT_RUN, f"Failed to open a pseudo terminal: {error.strerror}.") from None


async def _executed(
    address: Address,
    order: Order,
    payload: Payload,
    machine: Machine,
    terminal: Terminal | None,
    dialogue: Dialogue,
) -> int:
    """Execute the command as the payload of a machine, wait for its end, and return its exit status."""
    if order.directory not in {None, machine.runtime_directory}:
        raise Failure(
            Exit.NOT_RUN,
            f"%t of the helpers was {order.directory}, but the service has put the machine's runtime directory at "
            f"{machine.runtime_directory}.",
        )
    wanted = SIGNALS if terminal is None else SIGNALS_WITH_TERMINAL
    handled = [number for number in (*wanted, *PASSED_ON) if signal.getsignal(number) is not signal.SIG_IGN]
    if terminal is not None and terminal.interactive and not order.quiet:
        click.echo(f"Press Ctrl-] three times within 1 s to stop {printable(machine.name)}.", err=True)
    with (
        trio.open_signal_receiver(*handled) as signals,
        contextlib.nullcontext() if terminal is None else terminal.raw(),
    ):
        end = _End(address, order, machine, payload, raw=terminal is not None)
        notice = Notice(_await_stop(order, machine), end.stop_requested) if order.on_stop else None
        lease = Lease(address.path, dialogue, *_parameters(order, payload), end.lease_not_taken, notice)
        await take(lease.listen())
        await _execute(payload, order, terminal)
        async with trio.open_nursery() as nursery:
            end.begin(nursery)
            nursery.start_soon(end.on_signals, signals)
            try:
                if order.registration["lease"]:
                    nursery.start_soon(take, lease.keep())
                async with end.forwarding(terminal):
                    status = await payload.wait()
                    left = False
                    if order.registration["lease"]:
                        left = await end.outlived()
                        await end.stop(
                            at_once=True
                        )  # stops processes left behind; afterwards the name is free
                    end.over = True
                    await end.tell(left=left)
            finally:
                nursery.cancel_scope.cancel()
                lease.close()
    return status if status >= 0 else 128 - status


def _await_stop(order: Order, machine: Machine) -> AwaitStop:
    return AwaitStop(machine.name, if_invocation_id=machine.invocation_id, grace_usec=order.grace_usec)


def _not_run(error: Exception, address: Address, helpers: Sequence[Helper] = ()) -> Failure:
    return Failure(Exit.NOT_RUN, str(explain(error, address, {"helpers": as_sent(helpers)})))


def _parameters(order: Order, payload: Payload) -> tuple[dict[str, Any], list[int]]:
    """Return the parameters of Register, and the file descriptors to send along."""
    given = {name: value for name, value in order.registration.items() if value is not None}
    helpers = {"helpers": order.helpers} if order.helpers else {}
    named, fds = naming(payload.pidfd, "leaderFileDescriptor", "leader")
    return {**given, **helpers, **named}, fds


async def _registered(dialogue: Dialogue, address: Address, order: Order, payload: Payload) -> Reply:
    parameters, fds = _parameters(order, payload)
    try:
        return await take(
            authentication.call(
                dialogue, address, "Register", parameters, Reply, fds=fds, seconds=order.register_seconds
            )
        )
    except Exception as error:  # noqa: BLE001 - explain() raises again what it does not expect
        failure = _not_run(error, address, order.helpers)
    raise failure


async def _execute(payload: Payload, order: Order, terminal: Terminal | None) -> None:
    tty = None if terminal is None else terminal.payload_fd
    try:
        await payload.run(order.argv, tty=tty, **order.settings)
    except BadCommand as error:
        raise Failure(
            Exit.NOT_RUN, f"The value of {_OPTIONS.get(error.field, error.field)} is wrong: {error}."
        ) from None
    except StartFailed as error:
        raise _not_started(error, order.argv[0]) from None
    except (HolderGone, TooSlow) as error:
        raise Failure(Exit.NOT_RUN, f"Failed to execute {order.argv[0]}: {error}.") from None


def _not_started(error: StartFailed, program: str) -> Failure:
    reason = os.strerror(error.errno or 0)
    if error.field == "argv":
        missing = error.errno in {errno.ENOENT, errno.ENOTDIR}
        return Failure(
            Exit.NOT_FOUND if missing else Exit.NOT_EXECUTABLE,
            f"Failed to execute {printable(program)}: {reason}.",
        )
    what = _OPTIONS.get(error.field, error.field)
    text = f"Failed to apply {what}: {f'{printable(error.filename)}: ' if error.filename else ''}{reason}."
    if error.field == "subgroup" and error.errno == errno.EPERM:
        text += f"\n{_DELEGATED}"
    return Failure(Exit.NOT_RUN, text)


class _End:
    """Ends a machine, in good order or at once.

    Attributes:
        over: the machine has ended, and only the output of the command remains to be passed on.
    """

    def __init__(
        self,
        address: Address,
        order: Order,
        machine: Machine,
        payload: Payload,
        *,
        raw: bool,
    ) -> None:
        self.over = False
        self._address = address
        self._seconds = order.stop_seconds
        self._on_stop = order.on_stop
        self._quiet = order.quiet
        self._machine = machine
        self._payload = payload
        # A terminal in raw mode does not turn "\n" into "\r\n".
        self._line = "\r\n{}\r" if raw and os.isatty(2) else "{}"
        self._asked = False
        self._running_in: trio.Nursery | None = None

    @property
    def _nursery(self) -> trio.Nursery:
        assert self._running_in is not None, "nothing is to end yet"
        return self._running_in

    def begin(self, nursery: trio.Nursery) -> None:
        """Have a nursery for what goes on beside the command; it is cancelled to stop waiting."""
        self._running_in = nursery

    async def on_signals(self, signals: AsyncIterator[int]) -> None:
        """Pass on the signals that are for the command, and take every other one for a request to end."""
        async for number in signals:
            if number not in PASSED_ON:
                self.ask()
                continue
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._payload.pidfd, number)

    def ask(self) -> None:
        """Stop the machine on the first request and kill it on later ones; once all is over, stop waiting."""
        name = printable(self._machine.name)
        if self.over:
            self._nursery.cancel_scope.cancel()
        elif not self._asked:
            self._asked = True
            self._tell_progress(f"Stopping {name}. Interrupt again to kill it.")
            self._nursery.start_soon(self.stop)
        else:
            self._tell_progress(f"Killing {name}.")
            self._nursery.start_soon(self.kill)

    def forwarding(self, terminal: Terminal | None) -> AbstractAsyncContextManager[None]:
        """Connect the terminal of moorctl to that of the command, if there is one."""
        return (
            contextlib.nullcontext()
            if terminal is None
            else terminal.forwarding(self.ask, self._output_lost)
        )

    def _output_lost(self, error: OSError) -> None:
        # The command cannot notice, as it writes to its own terminal.
        self.say(f"Error: Failed to write: {error.strerror}")
        self.ask()

    def _tell_progress(self, text: str) -> None:
        if not self._quiet:
            self.say(text)

    def say(self, text: str) -> None:
        """Print a line for the person at the terminal."""
        try:
            click.echo(self._line.format(text), err=True)
        except OSError:  # the terminal was closed, but the machine still has to end
            # What is left in the buffer cannot be written at exit either.
            os.dup2(os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC), 2)

    def lease_not_taken(self, error: Exception) -> None:
        """Report that the lease could not be taken again yet."""
        self.say(f"Failed to take the lease again, will retry: {explain(error, self._address)}")

    def stop_requested(self, request: StopRequested) -> None:
        """Have the guest shut down; called when the machine is to be stopped, before it is."""
        del request  # the service insists by itself
        self._nursery.start_soon(self._shut_down)

    async def _shut_down(self) -> None:
        """Run the command that shuts the guest down; if it fails, have the machine stopped at once."""
        self.say(f"{printable(self._machine.name)} is to stop: shutting it down.")
        program = self._on_stop[0]
        try:
            done = await trio.run_process(self._on_stop, stdin=b"", stdout=2, check=False)
            failure = None if done.returncode == 0 else f"{program} ended with status {done.returncode}"
        except OSError as error:
            failure = f"Failed to execute {program}: {error.strerror}"
        if failure is not None:
            self.say(f"Error: {printable(failure)}.")
            await self.stop(at_once=True)

    async def stop(self, *, at_once: bool = False) -> None:
        """Have the service stop the machine, and wait until it is gone.

        Args:
            at_once: without the command that shuts it down.
        """
        machine, insist = self._machine, 0 if at_once and self._on_stop else None
        stop = Stop(machine.name, if_invocation_id=machine.invocation_id, insist_after_usec=insist)
        await self._ask(stop, self._seconds)

    async def outlived(self) -> bool:
        """Whether the machine lives on without its command, and is not being stopped.

        Processes that end because the command did get AFTERMATH_SECONDS for that.
        """
        until = trio.current_time() + AFTERMATH_SECONDS
        while await self._lives():
            if trio.current_time() >= until:
                return True
            await trio.sleep(LOOK_SECONDS)
        return False

    async def _lives(self) -> bool:
        machine = await self._described()
        return machine is not None and machine.phase == "running"

    async def tell(self, *, left: bool) -> None:
        """Print what the status of the command does not tell.

        Args:
            left: the machine lived on without its command.
        """
        machine = await self._described()
        text = None if machine is None else surprise(machine, asked=self._asked, left=left)
        if text is not None:
            self.say(printable(text))

    async def _described(self) -> Machine | None:
        """Return this very machine, or how it ended; None if the service no longer knows."""
        try:
            described = await take(call_at(self._address.path, Describe(self._machine.name)))
        except (OSError, VarlinkError, ProtocolError):
            return None  # only for information
        machine = described.machine
        return machine if machine.invocation_id == self._machine.invocation_id else None

    async def kill(self) -> None:
        """Have the service kill all processes of the machine; if that fails, kill at least the payload."""
        machine = self._machine
        kill = Kill(machine.name, signal=signal.SIGKILL, if_invocation_id=machine.invocation_id)
        if not await self._ask(kill):
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._payload.pidfd, signal.SIGKILL)

    async def _ask(self, request: Request[Any], seconds: float | None = None) -> bool:
        """Call the service about this very machine, which may be gone already, and return whether that succeeded."""
        try:
            # Not on the connection that registered the machine: a restart of the service ends that one.
            await take(call_at(self._address.path, request, seconds=seconds))
        except NoSuchMachine:
            pass
        except Exception as error:  # noqa: BLE001 - explain() raises again what it does not expect
            self.say(f"Error: {explain(error, self._address)}")
            return False
        return True
