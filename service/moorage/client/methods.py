"""Methods of io.moorage.Machine, as values: the parameters of a call, its reply, and how long that may take.

``client.call(Describe("web"))`` returns a :class:`Described`. What the parameters mean, says the interface.
"""

from __future__ import annotations

import math
from typing import Any, Final, Generic, TypeVar, get_args

from msgspec import Struct, field

from moorage.client.types import (
    Accounting,
    Difference,
    Helper,
    HelperStatus,
    Machine,
    Option,
    PlainEvent,
    PlannedUnit,
    Pressures,
    ProcessId,
    Sample,
    Timestamp,
)
from moorage.wire.patience import CALL_SECONDS

INTERFACE: Final = "io.moorage.Machine"

SERVICE_SECONDS: Final = 3600.0
"""How long the service may take at most for a call without a deadline: its configuration says how long, and no
more than this (moored.conf(5)). A service that is stuck ends the connection earlier, by its watchdog."""

FREEZE_SECONDS: Final = 25.0
"""The service's own deadline for SetProperties, Freeze and Thaw, which is no option."""

POWER_SECONDS: Final = 25.0
"""The service's own deadline for PowerOff and Reboot."""

ANSWER_SECONDS: Final = 15.0
"""Added to the service's deadline: it must still be able to report what went wrong."""

PERSON_SECONDS: Final = 300.0
"""Added where polkit may ask a person."""

T = TypeVar("T")


class Request(Struct, Generic[T], rename="camel", omit_defaults=True):
    """A call of a method that replies with a `T`."""

    def method(self) -> str:
        """Return the full name of the method."""
        return f"{INTERFACE}.{type(self).__name__}"

    def patience(self) -> float:
        """Return how long the reply may take, s."""
        return CALL_SECONDS


def reply_type(request: type[Request[T]]) -> type[T]:
    """Return the type of a method's replies."""
    base: Any = request.__orig_bases__[0]  # type: ignore[attr-defined]
    return get_args(base)[0]


class Nothing(Struct, frozen=True):
    """A reply without fields."""


class Registered(Struct, rename="camel", frozen=True, kw_only=True):
    """Reply of :class:`Register`.

    Attributes:
        machine: the machine.
        differences: limits and protections that are not in force as requested.
        units: of a dry run: what the machine would get.
    """

    machine: Machine
    differences: list[Difference]
    units: list[PlannedUnit] | None = None


class OneMachine(Struct, rename="camel", frozen=True):
    """Reply of :class:`List`, :class:`Find` and :class:`Stop`."""

    machine: Machine


class Described(Struct, rename="camel", frozen=True):
    """Reply of :class:`Describe`: a machine, its use of resources, and its limits in force.

    Attributes:
        accounting_since: when its counters were reset; None if they never were.
    """

    machine: Machine
    accounting: Accounting
    limits: dict[str, Any]
    accounting_since: Timestamp | None = None
    effective: dict[str, Any] | None = None
    devices: list[str] | None = None
    pressure: Pressures | None = None
    io: dict[str, Any] | None = None


class Measured(Struct, rename="camel", frozen=True):
    """Reply of :class:`Measure`."""

    sample: Sample


class PropertyTypes(Struct, rename="camel", frozen=True):
    """Reply of :class:`DescribeProperties`: D-Bus signatures, by the names of the properties."""

    properties: dict[str, str]


class ConfigurationDescribed(Struct, rename="camel", frozen=True):
    """Reply of :class:`DescribeConfiguration`.

    Attributes:
        options: all of them.
        problems: what is wrong with the files of the configuration.
    """

    options: list[Option]
    problems: list[str] | None = None


class HelpersAdded(Struct, rename="camel", frozen=True):
    """Reply of :class:`AddHelpers`."""

    helpers: list[HelperStatus]
    differences: list[Difference] | None = None


class HelpersReloaded(Struct, rename="camel", frozen=True):
    """Reply of :class:`Reload`: names of helpers."""

    reloaded: list[str]
    skipped: list[str]


class StopRequested(Struct, rename="camel", frozen=True):
    """Reply of :class:`AwaitStop`. The first one is empty: whoever has it will be told.

    Attributes:
        deadline: when the machine is stopped all the same, monotonic.
        power_off: its guest is being asked to power off already.
    """

    deadline: Timestamp | None = None
    power_off: bool | None = None


class PropertiesSet(Struct, rename="camel", frozen=True):
    """Reply of :class:`SetProperties`."""

    differences: list[Difference]


class Happened(Struct, rename="camel", frozen=True):
    """Reply of :class:`Subscribe`."""

    event: PlainEvent


class _OfMachine(Request[T]):
    """A call about one machine."""

    name: str


class _Managing(_OfMachine[T], kw_only=True):
    """A call that changes something, for which polkit may ask a person."""

    allow_interactive_authentication: bool | None = None

    def patience(self) -> float:
        return (
            self._deadline()
            + ANSWER_SECONDS
            + (PERSON_SECONDS if self.allow_interactive_authentication else 0)
        )

    def _deadline(self) -> float:
        return CALL_SECONDS - ANSWER_SECONDS


class Register(_Managing[Registered], kw_only=True):
    """Register a running process as a machine, with a scope of its own, and start its helpers."""

    class_: str = field(name="class")
    leader: ProcessId | None = None
    leader_file_descriptor: int | None = None
    supervised: bool | None = None
    id: str | None = None
    service: str | None = None
    root_directory: str | None = None
    if_indices: list[int] | None = None
    vsock_cid: int | None = field(name="vSockCid", default=None)
    ssh_address: str | None = None
    ssh_private_key_path: str | None = None
    control_address: str | None = None
    allocate_unit: bool | None = None
    slice: str | None = None
    description: str | None = None
    properties: dict[str, Any] | None = None
    slice_properties: dict[str, Any] | None = None
    helpers: list[Helper] | None = None
    exec_stop: list[str] | None = None
    exec_stop_timeout_usec: int | None = field(name="execStopTimeoutUSec", default=None)
    lease: bool | None = None
    dry_run: bool | None = None
    timeout_usec: int | None = field(name="timeoutUSec", default=None)

    def _deadline(self) -> float:
        return SERVICE_SECONDS if self.timeout_usec is None else self.timeout_usec / 1e6


class List(Request[OneMachine]):
    """List the living machines: one in each reply; the error NoSuchMachine if there are none."""


class Measure(Request[Measured]):
    """Measure the living machines, or those that are named: one in each reply."""

    names: list[str] | None = None
    counters: list[str] | None = None
    limits: bool | None = None


class Describe(_OfMachine[Described]):
    """Describe one machine."""


class DescribeProperties(Request[PropertyTypes]):
    """Describe the properties that this service manager has for a type of unit."""

    type: str


class DescribeConfiguration(Request[ConfigurationDescribed]):
    """Describe the options of the service: what is in force, and what will be after a restart."""


class Find(Request[OneMachine], kw_only=True):
    """Find the machine that something belongs to. Takes exactly one of the parameters."""

    process: ProcessId | None = None
    process_file_descriptor: int | None = None
    unit: str | None = None
    control_group: str | None = None
    invocation_id: str | None = None


class AddHelpers(_Managing[HelpersAdded]):
    """Start further helpers; as a stream also reply at each change of their states before."""

    helpers: list[Helper]

    def _deadline(self) -> float:
        return SERVICE_SECONDS


class RemoveHelper(_Managing[Nothing]):
    """Stop a helper and remove it from the machine."""

    helper: str


class Reload(_Managing[HelpersReloaded]):
    """Reload the helpers that can be reloaded."""

    def _deadline(self) -> float:
        return SERVICE_SECONDS


class SetProperties(_Managing[PropertiesSet]):
    """Set properties of the scope, or of a helper: all of them or none."""

    properties: dict[str, Any]
    helper: str | None = None
    if_invocation_id: str | None = None
    dry_run: bool | None = None

    def _deadline(self) -> float:
        return FREEZE_SECONDS


class Freeze(_Managing[Nothing], kw_only=True):
    """Suspend all processes of the machine."""

    helpers: bool | None = None
    if_invocation_id: str | None = None
    timeout_usec: int | None = field(name="timeoutUSec", default=None)

    def _deadline(self) -> float:
        return FREEZE_SECONDS if self.timeout_usec is None else self.timeout_usec / 1e6


class Thaw(_Managing[Nothing], kw_only=True):
    """Resume the processes of a frozen machine."""

    if_invocation_id: str | None = None
    timeout_usec: int | None = field(name="timeoutUSec", default=None)

    def _deadline(self) -> float:
        return FREEZE_SECONDS if self.timeout_usec is None else self.timeout_usec / 1e6


class ResetAccounting(_Managing[Nothing], kw_only=True):
    """Have the counters of the machine and of its helpers begin at zero again, for those who ask this service."""

    if_invocation_id: str | None = None


class PowerOff(_Managing[Nothing], kw_only=True):
    """Ask the guest to power off; the reply comes when it was asked."""

    if_invocation_id: str | None = None

    def _deadline(self) -> float:
        return POWER_SECONDS


class Reboot(_Managing[Nothing], kw_only=True):
    """Ask the guest to boot again; the reply comes when it was asked."""

    if_invocation_id: str | None = None

    def _deadline(self) -> float:
        return POWER_SECONDS


class Kill(_Managing[Nothing], kw_only=True):
    """Send a signal, by default to all processes."""

    signal: int
    whom: str | None = None
    subgroup: str | None = None
    if_invocation_id: str | None = None


class Stop(_Managing[OneMachine], kw_only=True):
    """Thaw the machine and stop its unit; as a stream also reply when it begins to stop."""

    power_off: bool | None = None
    insist_after_usec: int | None = field(name="insistAfterUSec", default=None)
    if_invocation_id: str | None = None
    timeout_usec: int | None = field(name="timeoutUSec", default=None)

    def _deadline(self) -> float:
        return SERVICE_SECONDS if self.timeout_usec is None else self.timeout_usec / 1e6


class AwaitStop(_OfMachine[StopRequested], kw_only=True):
    """Report that the machine is to be stopped, before it is; see ``stop_requested`` of ``machine()``."""

    if_invocation_id: str | None = None
    grace_usec: int | None = field(name="graceUSec", default=None)

    def patience(self) -> float:
        """Return how long that may take, s: for ever."""
        return math.inf


class PrepareForShutdown(Request[Nothing]):
    """Have launchers told of stops that are under way; for the service manager, when the host shuts down."""

    def patience(self) -> float:
        """Return how long that may take, s: as long as launchers want."""
        return math.inf


class Forget(_Managing[Nothing]):
    """Forget a machine. Its unit is left alone."""


class Subscribe(Request[Happened], kw_only=True):
    """Report what happens to machines, for as long as the caller stays connected; see ``subscribe()``."""

    names: list[str] | None = None
    events: list[str] | None = None
    cursor: str | None = None
    oldest: bool | None = None

    def patience(self) -> float:
        """Return how long the next event may take, s: for ever."""
        return math.inf
