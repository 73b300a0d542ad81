"""Handlers of io.systemd.service, which every service of systemd has (``varlink_method_ping()`` and others)."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Annotated

from msgspec import Meta

from moorage.api.calls import Authority, permit
from moorage.api.descriptions import load_description
from moorage.configuration.current import Configuration
from moorage.wire.call import Call
from moorage.wire.errors import InvalidParameter, VarlinkError
from moorage.wire.method import method
from moorage.wire.service import Interface
from moorage.wire.types import Empty, Int, Parameters, Reply


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
    """The handlers of io.systemd.service.

    Args:
        authority: the policy.
        configuration: has the level of the log.
    """

    def __init__(self, authority: Authority, configuration: Configuration) -> None:
        super().__init__(load_description("io.systemd.service"))
        self._authority = authority
        self._configuration = configuration

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
        self._configuration.override("log_level", params.level, call.method)

    @method("GetLogLevel")
    def get_log_level(self, call: Call, params: Empty) -> GetLogLevelOut:
        """Return the level of the log."""
        permit(call, self._authority)
        return GetLogLevelOut(level=self._configuration.settings.log_level)

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
