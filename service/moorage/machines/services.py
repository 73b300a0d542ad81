"""The services that interfaces call, as one value."""

from __future__ import annotations

from typing import NamedTuple

from moorage.machines.changing_limits import ChangingLimits
from moorage.machines.chronicle import Chronicle
from moorage.machines.control import Control
from moorage.machines.directories import Directories
from moorage.machines.freezing import Freezing
from moorage.machines.grace import Grace
from moorage.machines.helpers.changing import Changing
from moorage.machines.id_maps import IdMaps
from moorage.machines.looking import Looking
from moorage.machines.lookup import Lookup
from moorage.machines.networks import Networks
from moorage.machines.powering import Powering
from moorage.machines.registration import Registrar
from moorage.machines.registry import Registry
from moorage.machines.resetting import Resetting
from moorage.machines.retirement import Retirement
from moorage.machines.sampling import Sampling
from moorage.machines.terminals import Terminals


class Services(NamedTuple):
    """The services that an interface calls.

    Attributes:
        registry: which machines there are.
        lookup: the machine of a process.
        registrar: registers.
        control: stops and signals.
        changing: changes helpers.
        limits: changes properties.
        freezing: freezes and thaws.
        grace: stops, and gives time first.
        powering: asks guests to power off, or to boot again.
        looking: looks things up.
        sampling: looks at many machines.
        resetting: has counters begin at zero again.
        retirement: forgets.
        chronicle: tells what happens.
        terminals: opens terminals.
        directories: opens root directories.
        id_maps: numbers of users and groups.
        networks: addresses, for those who look up names.
    """

    registry: Registry
    lookup: Lookup
    registrar: Registrar
    control: Control
    changing: Changing
    limits: ChangingLimits
    freezing: Freezing
    grace: Grace
    powering: Powering
    looking: Looking
    sampling: Sampling
    resetting: Resetting
    retirement: Retirement
    chronicle: Chronicle
    terminals: Terminals
    directories: Directories
    id_maps: IdMaps
    networks: Networks
