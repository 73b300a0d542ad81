"""Handlers of io.moorage.Machine. Described methods without a handler are answered with MethodNotImplemented."""

from __future__ import annotations

from moorage.api.moorage_machine.awaiting import Awaiting
from moorage.api.moorage_machine.helpers import Helpers
from moorage.api.moorage_machine.limits import Limits
from moorage.api.moorage_machine.looks import Looks
from moorage.api.moorage_machine.measuring import Measuring
from moorage.api.moorage_machine.orders import Orders
from moorage.api.moorage_machine.registering import Registering
from moorage.api.moorage_machine.subscribing import Subscribing


class MoorageMachine(Registering, Looks, Orders, Limits, Helpers, Measuring, Subscribing, Awaiting):
    """All of them."""
