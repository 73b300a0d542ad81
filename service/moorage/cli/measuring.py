"""Measures what machines use, again and again: on one host, or on several at the same time."""

from __future__ import annotations

import fnmatch
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from moorage.cli.address import Address
from moorage.cli.connecting import connect
from moorage.cli.failures import Failure, explain
from moorage.cli.rates import Row, completed, rows
from moorage.client.dialogue import Dialogue, every_reply
from moorage.client.methods import INTERFACE, Measured
from moorage.client.subscription import RETURN_SECONDS
from moorage.client.types import Sample
from moorage.steps.blocking import take
from moorage.wire.errors import Disconnected, ProtocolError, VarlinkError
from moorage.wire.patience import CALL_SECONDS

COUNTERS: Final = ("cpu", "memory", "tasks", "io")
"""What is measured of all machines; the rest only of those that are shown, unless all are sorted by it."""

HOSTS_SECONDS: Final = 2.0
"""How long a look waits for the slowest of several hosts, s: then it shows what that one had to say before."""


class Meter:
    """Measures all machines, again and again, on one connection for as long as that lasts.

    Args:
        address: where the service listens.
        pattern: only machines whose names match it; None for all.
    """

    def __init__(self, address: Address, pattern: str | None) -> None:
        self._address = address
        self._pattern = pattern
        self._dialogue: Dialogue | None = None
        self._before: dict[str, Sample] = {}
        self._away_since: float | None = None
        self._was_there = False

    @property
    def failures(self) -> Mapping[str, Failure]:
        """Why hosts are left out, by their names; a single one is not."""
        return {}

    def close(self) -> None:
        """Close the connection."""
        if self._dialogue is not None:
            self._dialogue.close()
            self._dialogue = None

    def look(self, *, whole: bool) -> list[Row] | None:
        """Measure; return None while the service is away for a moment: it may be restarted.

        Args:
            whole: also limits and pressure, which cost as much as all the rest.

        Raises:
            Failure: it refuses, or stays away.
        """
        counters = (*COUNTERS, "pressure") if whole else COUNTERS
        samples = self._measure({"counters": counters, "limits": whole})
        if samples is None:
            return None
        samples = [
            sample
            for sample in samples
            if self._pattern is None or fnmatch.fnmatchcase(sample.name, self._pattern)
        ]
        found = rows(samples, self._before)
        self._before = {sample.name: sample for sample in samples}
        return found

    def complete(self, found: Sequence[Row]) -> list[Row]:
        """Return the same rows with limits and pressure, where these machines are all still there.

        Raises:
            Failure: as :meth:`look` says.
        """
        if not found:
            return []
        names = [row.name for row in found]
        samples = self._measure({"names": names, "counters": ["pressure"], "limits": True}) or []
        known = {sample.name: sample for sample in samples}
        return [completed(row, known[row.name]) if row.name in known else row for row in found]

    def _measure(self, parameters: dict[str, Any]) -> list[Sample] | None:
        try:
            if self._dialogue is None:
                self._dialogue = take(connect(self._address, CALL_SECONDS))
            replies = take(
                every_reply(self._dialogue, f"{INTERFACE}.Measure", Measured, CALL_SECONDS, parameters)
            )
        except (Disconnected, ConnectionError, FileNotFoundError) as error:
            self.close()
            self._note_away(error)
            return None
        except (VarlinkError, ProtocolError, OSError) as error:
            raise explain(error, self._address) from None
        self._was_there, self._away_since = True, None
        return [reply.sample for reply in replies]

    def _note_away(self, error: Exception) -> None:
        present = time.monotonic()
        self._away_since = present if self._away_since is None else self._away_since
        if not self._was_there or present - self._away_since > RETURN_SECONDS:
            raise explain(error, self._address) from None


class _Host:
    """One of several hosts, measured in threads that nobody has to wait for."""

    def __init__(self, address: Address, pattern: str | None) -> None:
        self.name = address.host or ""
        self.rows: list[Row] = []
        self.failure: Failure | None = None
        self.fault: Exception | None = None
        self._meter = Meter(address, pattern)
        self._thread: threading.Thread | None = None

    def begin(self) -> None:
        """Measure, unless the last look goes on, or it has failed."""
        if self.failure is None and (self._thread is None or not self._thread.is_alive()):
            # A thread that waits must not keep the process alive after Ctrl-C.
            self._thread = threading.Thread(target=self._look, daemon=True)
            self._thread.start()

    def wait(self, until: float) -> None:
        """Wait for the look, until a time of :func:`time.monotonic`."""
        if self._thread is not None:
            self._thread.join(max(0.0, until - time.monotonic()))

    def _look(self) -> None:
        try:
            found = self._meter.look(whole=True)
        except Failure as failure:
            self.rows, self.failure = [], failure
        except Exception as error:  # noqa: BLE001  # raised where the rows are read
            self.fault = error
        else:
            if found is not None:
                self.rows = [msgspec.structs.replace(row, host=self.name) for row in found]


class Meters:
    """Measures the machines of several hosts; one that fails is left out from then on.

    Args:
        addresses: of the services.
        pattern: only machines whose names match it; None for all.
    """

    def __init__(self, addresses: Sequence[Address], pattern: str | None) -> None:
        self._hosts = [_Host(address, pattern) for address in addresses]
        self._first = True

    @property
    def failures(self) -> Mapping[str, Failure]:
        """Why hosts are left out, by their names."""
        return {host.name: host.failure for host in self._hosts if host.failure is not None}

    def close(self) -> None:
        """Leave the connections to the end of the process: threads may be waiting for them."""

    def look(self, *, whole: bool) -> list[Row]:
        """Measure. The first look waits for all hosts, as somebody may have to type a password.

        Args:
            whole: as that of a single host; here all looks are.

        Raises:
            Failure: that of the last host that was left.
        """
        del whole
        until = time.monotonic() + HOSTS_SECONDS
        for host in self._hosts:
            host.begin()
        for host in self._hosts:
            host.wait(threading.TIMEOUT_MAX if self._first else until)
            if host.fault is not None:
                raise host.fault
        self._first = False
        if len(self.failures) == len(self._hosts):
            raise Failure(next(iter(self.failures.values())).status, "There is no host left to ask.")
        return [row for host in self._hosts for row in host.rows]

    def complete(self, found: Sequence[Row]) -> list[Row]:
        """Return the rows, which are complete."""
        return list(found)
