"""Handlers of io.systemd.service, which every service of systemd has (``varlink_method_ping()`` and others)."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from typing import Annotated

from msgspec import Meta

from moorage.api.calls import Authority, permit
from moorage.api.descriptions import load_description
from moorage.wire.call import Call
from moorage.wire.errors import InvalidParameter, VarlinkError
from moorage.wire.method import method
from moorage.wire.service import Interface
from moorage.wire.types import Empty, Int, Parameters, Reply

# Levels of syslog(3) and of Python's logging. Python has fewer; the more verbose one is used.
_TO_PYTHON = {
    0: logging.CRITICAL,
    1: logging.CRITICAL,
    2: logging.CRITICAL,
    3: logging.ERROR,
    4: logging.WARNING,
    5: logging.INFO,
    6: logging.INFO,
    7: logging.DEBUG,
}


class SetLogLevelIn(Parameters, kw_only=True):
    """A level of syslog(3), 0 (emergency) to 7 (debug)."""

    level: Annotated[int, Meta(ge=0, le=7)] | None = None


class GetLogLevelOut(Reply, kw_only=True):
    """A level of syslog(3)."""

    level: Int


class GetEnvironmentOut(Reply, kw_only=True):
    """The environment block, as KEY=VALUE."""

    environment: list[str] | None = None


@dataclass(eq=False)
class InconsistentEnvironment(VarlinkError):
    """The environment block is not UTF-8."""

    error = "io.systemd.service.InconsistentEnvironment"


class GenericService(Interface):
    """The handlers of io.systemd.service."""

    def __init__(self, authority: Authority, *, log_level: int = 6) -> None:
        """Create the interface.

        Args:
            authority: the policy.
            log_level: initial level of syslog(3).
        """
        super().__init__(load_description("io.systemd.service"))
        self._authority = authority
        self._level = log_level
        logging.getLogger().setLevel(_TO_PYTHON[log_level])

    @method("Ping")
    def ping(self, call: Call, params: Empty) -> None:
        """Reply."""

    @method("SetLogLevel")
    def set_log_level(self, call: Call, params: SetLogLevelIn) -> None:
        """Set the level of the log."""
        # Described as nullable, but required (varlink_method_set_log_level()).
        if params.level is None:
            raise InvalidParameter("level")
        permit(call, self._authority)
        self._level = params.level
        logging.getLogger().setLevel(_TO_PYTHON[params.level])

    @method("GetLogLevel")
    def get_log_level(self, call: Call, params: Empty) -> GetLogLevelOut:
        """Return the level of the log."""
        permit(call, self._authority)
        return GetLogLevelOut(level=self._level)

    @method("GetEnvironment")
    def get_environment(self, call: Call, params: Empty) -> GetEnvironmentOut:
        """Return the environment block that the service was started with."""
        permit(call, self._authority)
        try:
            return GetEnvironmentOut(
                environment=[f"{key.decode()}={value.decode()}" for key, value in os.environb.items()]
            )
        except UnicodeDecodeError:
            raise InconsistentEnvironment from None
