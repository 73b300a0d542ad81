"""Processes of their own beside the client that is measured: one that calls as well, and one that looks."""

import array
import os
import select
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from types import TracebackType
from typing import Self

from benchmarks.wire import GET_INFO, Unmeasurable, connect, exchange

OTHER_SECONDS = 0.002
"""Pause between two calls of the other caller."""

LOOK_SECONDS = 0.0001
"""Pause between two looks of the observer: a twentieth of what the fastest peer needs. Looking takes 5 µs."""


class Apart(ABC):
    """A process that works until it is told to stop, or is done, and hands over samples. A context manager."""

    what: str

    def __enter__(self) -> Self:
        stop, self._stop = os.pipe()
        self._results, results = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            status = 1
            try:
                os.close(self._stop)
                samples = self.work(stop, lambda: os.write(results, b"+"))
                with os.fdopen(results, "wb") as file:
                    file.write(samples.tobytes())
                status = 0
            finally:
                os._exit(status)
        os.close(stop)
        os.close(results)
        os.read(self._results, 1)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._stop)
        with os.fdopen(self._results, "rb") as results:
            data = results.read()
        _, status = os.waitpid(self._pid, 0)
        if error is None and status != 0:
            raise Unmeasurable(f"{self.what} failed")
        samples = array.array("d")
        samples.frombytes(data)
        self.take(samples.tolist())

    @abstractmethod
    def work(self, stop: int, ready: Callable[[], object]) -> "array.array[float]":
        """Return the samples; runs in the other process.

        Args:
            stop: a descriptor that becomes readable when it is time to end.
            ready: to be called once it works.
        """

    @abstractmethod
    def take(self, samples: list[float]) -> None:
        """Take over the samples."""


class OtherCaller(Apart):
    """Keeps calling GetInfo, with a short pause.

    Attributes:
        waits: after the context, what each call took, in ms.
    """

    what = "another caller's GetInfo meanwhile"

    def __init__(self, path: str) -> None:
        self.waits: list[float] = []
        self._path = path

    def work(self, stop: int, ready: Callable[[], object]) -> "array.array[float]":
        """See `Apart`."""
        samples = array.array("d")
        with connect(self._path) as sock:
            exchange(sock.fileno(), GET_INFO)
            ready()
            while not select.select([stop], [], [], OTHER_SECONDS)[0]:
                begin = time.perf_counter()
                exchange(sock.fileno(), GET_INFO)
                samples.append((time.perf_counter() - begin) * 1000)
        return samples

    def take(self, samples: list[float]) -> None:
        """See `Apart`."""
        self.waits = samples


class Observer(Apart):
    """Looks when things become true one after the other, which all are at the end of the context.

    Attributes:
        seen: after the context, when each was true, s, as of time.perf_counter().
    """

    what = "the observer"

    def __init__(self, count: int, holds: Callable[[int], bool]) -> None:
        """Look at nothing yet.

        Args:
            count: of the things.
            holds: tells of each by its number.
        """
        self.seen: list[float] = []
        self._count = count
        self._holds = holds

    def work(self, stop: int, ready: Callable[[], object]) -> "array.array[float]":
        """See `Apart`."""
        ready()
        times = array.array("d")
        for number in range(self._count):
            while not self._holds(number):
                if select.select([stop], [], [], LOOK_SECONDS)[0] and not self._holds(number):
                    return times
            times.append(time.perf_counter())
        return times

    def take(self, samples: list[float]) -> None:
        """See `Apart`."""
        self.seen = samples
